"""The daemon: start builds it, the loop turns the pipeline until it is told to stop."""
