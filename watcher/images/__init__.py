"""From the bytes of a file to a picture of 64 x 64 pixels. Nothing here imports torch or reads settings."""
