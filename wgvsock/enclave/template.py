"""The output of ``wgvsock config init enclave``: every key as a comment, with its default."""

from __future__ import annotations

from typing import Final

TEMPLATE: Final = """\
#:schema ./enclave.schema.json
# wgvsock inside the enclave. docs/configuration.md describes every key.
# This file is part of the image: changing it changes the measurements.
# Check it with: wgvsock config check enclave FILE
# Editors read the first line: wgvsock config schema enclave > enclave.schema.json

#listen = "vsock:4294967295:51820"    # any CID of this enclave; provisioning listens one port higher
#parent_cid = 3                       # the only CID that may connect; 2 under QEMU
#interface = "wg0"
#key_pcr = 16                         # PCR that commits to the WireGuard key; -1: off
#pin_public_key = "base64"            # relay pin: wgvsock keys pub --signing < signing.key
#resolv_conf = "/etc/resolv.conf"     # "": leave DNS alone
#stop_timeout = 10.0                  # seconds that the application has to end after SIGTERM

#[application]
#forward_output = false               # send its output to the relay's standard output and to wgvsock logs
#restart = "never"                    # "on-failure", "always": restart it instead of ending the enclave
#ready = "http:127.0.0.1:8080/healthz"   # or "tcp:127.0.0.1:8080", or "exec:/bin/check"
#user = "app"                         # or "1000:1000"; default: the agent's user
#env = ["NAME=value"]
#working_directory = "/app"
#signals = []                         # signals that wgvsock signal may send, such as ["HUP"]

#[clock]
#set = "never"                        # "ptp": from the hypervisor; "relay": from a relay that has proved itself

#[attestation_endpoint]
#port = 0                             # such as 8444: documents for the enclave's clients; publish it like any port
#local = false                        # documents for the application, on a Unix socket: wgvsock attest own
#tls_certificate = "/app/tls.pem"     # binds each document to the application's TLS sessions

# What may leave the enclave, whatever the relay allows. Without this table only the relay decides.
#[egress]
#default = "deny"                     # or "allow": all but metadata, link-local and the relay's own machine
#[[egress.allow]]
#network = "10.20.0.0/16"             # names belong in the relay's policy: it answers DNS
#ports = [443]                        # default: all
#protocol = "tcp"                     # or "udp", "icmp" (ping), "any"
"""
