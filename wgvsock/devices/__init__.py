"""Kernel devices: the TUN that holds wg0's packets and the Nitro Security Module."""
