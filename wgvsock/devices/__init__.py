"""Kernel devices: the TUN that carries wg0's packets, and the Nitro Security Module."""
