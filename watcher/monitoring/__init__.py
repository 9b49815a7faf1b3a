"""Log, metrics and drift. Only service/ and cli/ write log lines."""
