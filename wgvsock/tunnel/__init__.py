"""The data plane: joins a TUN device, the WireGuard core and a transport."""
