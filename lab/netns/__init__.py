"""The `netns` backend: four network namespaces, veths between them, and a Unix stream in place of the vsock."""
