"""Finds the files that arrive in the inbox, and tells when each is complete."""
