"""What ``wgvsock config init enclave`` prints: every key, with its default as a comment."""

from __future__ import annotations

from typing import Final

TEMPLATE: Final = """\
# wgvsock inside the enclave; every key is described in docs/configuration.md.
# The file is a part of the image: whoever changes it changes the measurements.
# Check it with: wgvsock config check enclave FILE

#listen = "vsock:4294967295:51820"    # any CID of this enclave; provisioning is one port higher
#parent_cid = 3                       # the only CID that may connect; 2 under QEMU
#interface = "wg0"
#key_pcr = 16                         # commits to the WireGuard key; -1: off
#pin_public_key = "base64"            # relay pin: wgvsock keys pub --signing < signing.key
#resolv_conf = "/etc/resolv.conf"     # "": leave DNS alone
#stop_timeout = 10.0                  # seconds that the application has after SIGTERM
"""
