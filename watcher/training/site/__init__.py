"""Adapt the network to the images of a site, by tuning the last layers only."""
