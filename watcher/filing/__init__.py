"""Moves files. The ledger records every decision before the move, and its ending after it."""
