"""The audit trail in SQLite. The daemon writes it; commands and the page read it."""
