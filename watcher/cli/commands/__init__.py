"""One module a group of commands. Each takes the parsed arguments and returns an exit code."""
