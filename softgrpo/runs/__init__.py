"""Runs: a recipe trained from its checks to its table, and a model evaluated. No command line."""
