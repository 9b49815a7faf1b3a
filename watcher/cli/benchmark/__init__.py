"""Measure the daemon for ``bench``, and the two programs that it is compared with."""
