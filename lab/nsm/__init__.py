"""A stand-in for the Nitro Security Module: certificates in AWS's format, PCRs, documents, and settings for faults.

Every certificate says ``O=wgvsock-lab, OU=NOT-AWS``. Every root is generated, and its key never leaves the process.
"""
