"""One training: a recipe, a run, its calibration and its compression."""
