"""What an operator sees of a running service: log lines, the status snapshot, metrics and probes."""
