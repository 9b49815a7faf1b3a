"""A site's own images adapt the network: only the last layers are tuned."""
