"""What arrives, and when it is complete. The scan and the events of the inbox feed completeness."""
