"""The demo behind ``make run``. Its images are synthetic: they show no patient."""
