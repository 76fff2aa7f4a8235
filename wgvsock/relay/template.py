"""The output of ``wgvsock config init relay``: the main keys, with their defaults as comments."""

from __future__ import annotations

from typing import Final

TEMPLATE: Final = """\
#:schema ./relay.schema.json
# wgvsock relay. docs/configuration.md describes every key.
# Check it with: wgvsock config check relay FILE
# Editors read the first line: wgvsock config schema relay > relay.schema.json

[enclave]
address = "vsock:16:51820"            # EnclaveCID and WireGuard port; provisioning is one port higher
#addresses = ["10.73.0.2/24"]         # default: a link from the pool, 198.18.73.3/31 and fddc:7f99:d74c::3/127
#routes = ["0.0.0.0/0", "::/0"]       # default: the IP versions that the uplink has a default route for

[attestation]
#root_sha256 = ["641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"]   # AWS's root G1
#allow_debug = false
#max_age = 120.0                      # seconds
#key_pcr = 16                         # -1: off
#instance_id = "i-0123456789abcdef0"  # PCR4 has to measure this parent instance

# Replace the zeros, which match no enclave, with the measurements that `nitro-cli build-enclave` printed. Add one such
# table for each accepted image.
[[attestation.pcr_sets]]
pcr0 = "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
pcr1 = "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
pcr2 = "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"

[interface]
#name = "wg0"
#addresses = ["10.73.0.1/24"]
#mtu = 1500                           # bytes; default: the uplink's
#persistent_keepalive = 25            # seconds; 0: off

[dns]                                 # default: what this machine's resolv.conf says
#servers = ["10.100.0.10"]
#search = ["default.svc.cluster.local"]
#options = ["ndots:5"]
#forward = true                       # the relay asks them; default: if a policy has names, or all are on its loopback

[provisioning]
#signing_key_file = "/etc/wgvsock/signing.key"   # for the enclave's relay pin: wgvsock keys gen --signing -o FILE
#reattest_every = 3600.0              # seconds
#reattest_after_loss = 3.0            # seconds

[egress]
#default = "deny"                     # or "allow": all except metadata, link-local and the relay's own machine
#max_new_flows = 1000                 # per second
#max_flows = 16384

#[[egress.allow]]
#name = "kms.us-east-1.amazonaws.com" # or "*.example.com"; or network = "10.20.0.0/16"; or relay = true
#ports = [443]                        # default: all
#protocol = "tcp"                     # or "udp", "icmp" (ping), "any"

[nat]
#uplink = "eth0"                      # default: the default route's interface

#[[nat.publish]]
#protocol = "tcp"
#port = 443
#enclave_port = 8443                  # default: the same

[uplink]
#mode = "kernel"                      # "userspace": without NET_ADMIN; "auto": whichever this process may use
#max_connections = 4096               # in user space, for each enclave

[application]
#on_exit = "restart"                  # "stop": the relay ends with the application's exit status
#output = true                        # copy its output, if its image permits that, to the relay's standard output

[health]
#listen = "tcp:0.0.0.0:9808"          # /live, /ready and /metrics
#expose = []                          # "status", "control": for everyone who can reach the port
"""
