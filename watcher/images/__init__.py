"""Bytes to a picture. Nothing here imports torch or reads settings."""
