"""A transparent DNS forwarder (RFC 5625) for one enclave. It has no cache, and may have a judge of names."""
