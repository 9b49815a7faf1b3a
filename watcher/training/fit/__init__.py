"""Train one network: its recipe, its run, its evaluation, calibration and compression."""
