"""The path of the repository that is tested."""

from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
