"""Many trainings compared: variants of a recipe, several seeds each, within a budget."""
