"""Compare many trainings: variants of a recipe, each with several seeds, within a budget."""
