"""Run the demo of ``make run``. Its images are synthetic: they show no patient."""
