"""The review page. Needs the extra ``web``."""
