"""Transports for datagrams: AF_VSOCK, Unix and TCP streams, and UDP. They know bytes and addresses, not WireGuard."""
