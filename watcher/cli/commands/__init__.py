"""The commands, one module each. Its ``run`` takes the parsed arguments and returns an exit code."""
