"""What ``wgvsock config init relay`` prints: every key, with its default as a comment."""

from __future__ import annotations

from typing import Final

TEMPLATE: Final = """\
# wgvsock relay; every key is described in docs/configuration.md.
# Check it with: wgvsock config check relay FILE

[enclave]
address = "vsock:16:51820"            # EnclaveCID and WireGuard port; provisioning is one port higher
#addresses = ["10.73.0.2/24", "fd73::2/64"]
#routes = ["0.0.0.0/0", "::/0"]       # default: the families that the uplink has a default route for

[attestation]
#root_sha256 = ["641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"]   # AWS's root G1
#allow_debug = false
#max_age = 120.0                      # seconds
#key_pcr = 16                         # -1: off
#instance_id = "i-0123456789abcdef0"  # then PCR4 has to measure this parent instance

# Replace the zeros, which match no enclave, by the measurements that `nitro-cli build-enclave` printed; one table for
# each image that is accepted.
[[attestation.pcr_sets]]
pcr0 = "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
pcr1 = "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
pcr2 = "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"

[interface]
#name = "wg0"
#addresses = ["10.73.0.1/24", "fd73::1/64"]
#mtu = 1500                           # bytes; default: the uplink's
#persistent_keepalive = 25            # seconds; 0: off

[dns]                                 # default: what this machine's resolv.conf says
#servers = ["10.100.0.10"]
#search = ["default.svc.cluster.local"]
#options = ["ndots:5"]

[provisioning]
#signing_key_file = "/etc/wgvsock/signing.key"   # the private half of the enclave's relay pin
#reattest_every = 3600.0              # seconds
#reattest_after_loss = 3.0            # seconds

[nat]
#uplink = "eth0"                      # default: the default route's interface
#allow_link_local = []                # such as ["169.254.169.123/32"]
#allow_relay = false                  # the enclave may open connections to the relay's own machine

#[[nat.publish]]
#protocol = "tcp"
#port = 443
#enclave_port = 8443                  # default: the same

[health]
#listen = "tcp:0.0.0.0:9808"
"""
