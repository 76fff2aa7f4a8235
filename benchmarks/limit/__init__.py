"""The machine's limits: loops that move packets as wgvsock does, and do nothing else. Not usable as tunnels."""
