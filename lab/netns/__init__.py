"""The `netns` backend: four network namespaces, veths between them, and a Unix stream where the vsock would be."""
