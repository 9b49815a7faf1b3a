"""Declare the arguments of each command. No command is imported here."""
