"""Trainings on several sources, judged on sources that were left out."""
