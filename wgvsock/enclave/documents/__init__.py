"""Attestation documents for the enclave's clients and for its application. Provisioning makes its own."""
