"""Record people's verdicts, carry them out, and serve the page to give them on. Never imports torch."""
