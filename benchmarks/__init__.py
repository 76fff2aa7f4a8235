"""Compares the data plane with its rivals, in interleaved rounds in network namespaces: see docs/performance.md."""
