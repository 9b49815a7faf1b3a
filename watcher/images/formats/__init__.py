"""Checks that files of each format are complete, before any pixel is decoded."""
