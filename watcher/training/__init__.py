"""Training and judging of the networks. Nothing here runs inside the daemon."""
