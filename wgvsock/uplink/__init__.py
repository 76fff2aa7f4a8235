"""The engine of the user-space uplink: a separate process that has sockets but no privileges.

It parses an enclave's packets in C (libslirp). It is therefore isolated from the relay, which holds the keys. The relay
passes it two sockets, one for packets and one for orders. The engine talks to the relay only through them.
"""
