"""Code that several packages share. It needs the standard library and numpy alone."""
