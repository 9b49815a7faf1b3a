"""Checks of the host and of the installation. They change nothing and leave nothing behind."""
