"""What is known of models and not of thinking: their inputs, attention, kernels and parameters."""
