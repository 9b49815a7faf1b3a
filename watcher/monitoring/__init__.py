"""Write the log, serve metrics and watch for drift."""
