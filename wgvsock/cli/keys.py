"""``wgvsock keys gen|pub``: WireGuard and signing keys, as ``wg genkey`` and ``wg pubkey`` print them."""

from __future__ import annotations

import argparse
import base64
import binascii
import os
import sys

from wgvsock.cli.output import print_json, put
from wgvsock.errors import ConfigurationError

_MAX_INPUT = 1024
"""Bytes; a key in base64 has 44."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``keys`` to the commands of ``wgvsock``."""
    keys = commands.add_parser("keys", help="make keys")
    verbs = keys.add_subparsers(dest="verb", required=True, metavar="gen|pub")
    gen = verbs.add_parser("gen", help="print a fresh private key in base64")
    gen.set_defaults(run=_gen)
    pub = verbs.add_parser("pub", help="read a private key from standard input and print its public key")
    pub.add_argument("--json", action="store_true", help="print one JSON object")
    pub.set_defaults(run=_pub)
    for parser in (gen, pub):
        parser.add_argument(
            "--signing", action="store_true", help="an Ed25519 key: the relay's signing key and the enclave's relay pin"
        )


def _gen(args: argparse.Namespace) -> int:
    from wgvsock.wireguard.primitives import generate_private_key

    key = os.urandom(32) if args.signing else generate_private_key(os.urandom)
    put(base64.b64encode(key).decode())
    return 0


def _pub(args: argparse.Namespace) -> int:
    from wgvsock.provisioning.pin import public_key_of
    from wgvsock.wireguard.primitives import public_key

    private_key = _read_key()
    key = base64.b64encode(public_key_of(private_key) if args.signing else public_key(private_key)).decode()
    if args.json:
        print_json({"kind": "signing" if args.signing else "wireguard", "public_key": key})
    else:
        put(key)
    return 0


def _read_key() -> bytes:
    try:
        key = base64.b64decode(sys.stdin.buffer.read(_MAX_INPUT).strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != 32:
        raise ConfigurationError(
            "cannot read a private key from standard input",
            why="it is not 32 bytes in base64",
            fix="pipe one in: wgvsock keys gen | wgvsock keys pub",
        )
    return key
