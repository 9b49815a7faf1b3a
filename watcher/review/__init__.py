"""People judge images: what they say, how it is carried out, and the page to do so on. Never imports torch."""
