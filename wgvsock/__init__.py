"""Full, attested IP networking for AWS Nitro Enclaves: WireGuard over AF_VSOCK."""

__version__ = "0.1.0"
