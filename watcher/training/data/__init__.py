"""Read, make and change the images to train on. They are held in memory as 64 x 64 bytes."""
