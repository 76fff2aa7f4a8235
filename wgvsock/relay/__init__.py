"""The relay: attests and provisions enclaves, and forwards their packets to the network."""
