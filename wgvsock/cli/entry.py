"""The entry point: finds the subcommand, and imports its module alone."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Final

from wgvsock import __version__
from wgvsock.cli.ending import run_command

COMMANDS: Final = {
    "relay": "run the relay, in the pod or on the parent instance",
    "enclave": "run the agent inside the enclave",
    "device": "run a userspace WireGuard interface for wg and wg-quick",
    "status": "show what a running service does",
    "nat": "show the packet filter's rules",
    "doctor": "look for what is missing on this machine",
    "attest": "read or verify an attestation document",
    "keys": "make keys",
    "config": "write, check and show configurations",
}
"""Module of this package and what it is for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``wgvsock``; returns the exit status (see docs/operations.md)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    args = make_parser(arguments).parse_args(arguments)
    status: int = args.run(args)
    return status


def make_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser, complete for the subcommand that stands in `arguments`; the others are only named."""
    parser = argparse.ArgumentParser(prog="wgvsock", description="Full, attested IP networking for Nitro Enclaves.")
    parser.add_argument("--version", action="version", version=f"wgvsock {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    wanted = next((argument for argument in arguments if not argument.startswith("-")), "")
    for name, about in COMMANDS.items():
        if name == wanted:
            importlib.import_module(f"wgvsock.cli.{name}").add_parser(commands)
        else:
            commands.add_parser(name, help=about)
    return parser
