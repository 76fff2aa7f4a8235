"""Carriers of datagrams: AF_VSOCK, Unix, TCP streams and UDP. They know bytes and addresses, never WireGuard."""
