"""The command line: thin; what others would want lives in the other packages."""
