"""The settings of an operator: read, checked and given to others as frozen values."""
