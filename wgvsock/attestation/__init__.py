"""Verification of AWS Nitro Enclaves attestation documents: no I/O, no clock, no entropy.

The parts, in the order a document meets them: `cbor` (strict reader), `document` (COSE_Sign1 and payload),
`certificates` (chain), `verifier` (every check in order); beside them `policy` (what is accepted), `binding` (what ties
a document to a WireGuard key and to one enclave) and `errors` (one class for each failed check).
"""
