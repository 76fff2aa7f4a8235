"""The relay: attests and provisions its enclave, carries its packets, and opens the way to the world."""
