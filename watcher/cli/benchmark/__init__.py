"""What ``bench`` measures, and what it measures it against."""
