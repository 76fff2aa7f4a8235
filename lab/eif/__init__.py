"""Enclave image files: written, read and measured as ``nitro-cli build-enclave`` and ``describe-eif`` do."""
