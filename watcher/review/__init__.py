"""The web page on which people see what was decided, and say what images are. Never imports torch."""
