"""The data plane against its rivals, in interleaved rounds on network namespaces; see docs/performance.md."""
