"""Keeps the audit trail in SQLite. The daemon writes it; commands and the review page read it."""
