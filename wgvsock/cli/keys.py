"""``wgvsock keys gen|pub``: make WireGuard and signing keys, in the form of ``wg genkey`` and ``wg pubkey``.

``gen -o FILE`` creates a file that no other user can read. A shell's redirection creates one with the umask's mode.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import os
import stat
import sys
from pathlib import Path

from wgvsock.cli.output import OutputError, note, print_json, put
from wgvsock.errors import ConfigurationError
from wgvsock.runtime import private
from wgvsock.runtime.process import forbid_core_dumps

_MAX_INPUT = 1024
"""Bytes. A key in base64 has 44."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``keys`` to the commands of ``wgvsock``."""
    keys = commands.add_parser("keys", help="make keys")
    verbs = keys.add_subparsers(dest="verb", required=True, metavar="gen|pub")
    gen = verbs.add_parser("gen", help="print a new private key in base64")
    gen.add_argument("-o", "--output", type=Path, metavar="FILE", help="write it to a new file, with mode 0600")
    gen.add_argument("--force", action="store_true", help="replace the file if it exists")
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

    forbid_core_dumps()
    if args.force and args.output is None:
        raise ConfigurationError("cannot use --force", why="it needs a file to replace", fix="name one: -o FILE")
    key = base64.b64encode(os.urandom(32) if args.signing else generate_private_key(os.urandom)).decode()
    if args.output is not None:
        _write(args.output, key, replace=args.force)
        return 0
    if mode := _mode_of_open_output():
        note(f"other users can access the file that receives the key (mode {mode:04o}): chmod 600 it, or use -o FILE")
    put(key)
    return 0


def _write(path: Path, key: str, *, replace: bool) -> None:
    try:
        (private.write if replace else private.create)(path, f"{key}\n".encode())
    except FileExistsError:
        raise ConfigurationError(
            f"cannot write the key to {path}",
            why="the file exists, and replacing it would lose its key",
            fix="choose another name, or replace it with --force",
        ) from None
    except OSError as error:
        raise OutputError(
            f"cannot write the key to {path}", why=private.why(error), fix="choose a directory that this user can write"
        ) from None


def _mode_of_open_output() -> int | None:
    """The mode of our standard output, if it is a regular file that other users can access."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor
        status = os.fstat(sys.stdout.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IRWXO:
            return stat.S_IMODE(status.st_mode)
    return None


def _pub(args: argparse.Namespace) -> int:
    from wgvsock.provisioning.pin import public_key_of
    from wgvsock.wireguard.primitives import public_key

    forbid_core_dumps()
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
