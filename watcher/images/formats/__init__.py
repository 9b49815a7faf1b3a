"""Checks that a file of each format is complete. Nothing here decodes pixels."""
