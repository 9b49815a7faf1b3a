"""What several packages need. Stands on the standard library and numpy alone."""
