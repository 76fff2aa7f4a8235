"""Verification of AWS Nitro Enclaves attestation documents: no I/O, no clock, no entropy.

A document passes through the modules in this order: `cbor` (strict reader), `document` (COSE_Sign1 and payload),
`certificates` (chain), `verifier` (every check in order). They use `policy` (what is accepted), `binding` (what binds a
document to a WireGuard key and to one enclave) and `errors` (one class for each failed check).
"""
