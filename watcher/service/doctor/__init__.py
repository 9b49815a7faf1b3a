"""Check the host and the installation. The checks change nothing and leave nothing behind."""
