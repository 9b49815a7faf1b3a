"""What each command is told on the command line. No command is imported here."""
