"""Images to train on. They stay in memory as 64 x 64 bytes."""
