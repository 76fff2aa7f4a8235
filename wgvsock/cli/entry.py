"""Finds the subcommand and imports only its module."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Final

from wgvsock import __version__
from wgvsock.cli.ending import run_command
from wgvsock.cli.output import CommandParser

COMMANDS: Final = {
    "relay": "run the relay, in the pod or on the parent instance",
    "enclave": "run the agent inside the enclave",
    "device": "run a userspace WireGuard interface for wg and wg-quick",
    "status": "show the state of a running service",
    "top": "show rates, drops and processor use continuously",
    "capture": "capture the packets of an enclave's tunnel for Wireshark",
    "logs": "show what an enclave's application writes",
    "signal": "send an enclave's application a signal",
    "ping": "probe an enclave through each layer of its tunnel",
    "netcheck": "find the first broken layer between the relay and the world",
    "egress": "show what an enclave may reach, and what it was refused",
    "nat": "show the packet filter's rules",
    "doctor": "find what is missing on this machine",
    "attest": "read, verify or fetch an attestation document",
    "keys": "make keys",
    "config": "write, check and show configurations",
    "explain": "explain an error code, a check or a drop reason",
    "version": "show version, commit and build",
}
"""Modules of this package, and what each command does."""


def run(arguments: Sequence[str]) -> int:
    """Run a command, and return its exit status (see docs/operations.md)."""
    return run_command(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    args = make_parser(arguments).parse_args(arguments)
    status: int = args.run(args)
    return status


def make_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser, complete only for the subcommand in `arguments`. The others have just a name and help text."""
    parser = CommandParser(prog="wgvsock", description="Full, attested IP networking for Nitro Enclaves.")
    parser.add_argument("--version", action="version", version=f"wgvsock {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    wanted = next((argument for argument in arguments if not argument.startswith("-")), "")
    for name, about in COMMANDS.items():
        if name == wanted:
            importlib.import_module(f"wgvsock.cli.{name}").add_parser(commands)
        else:
            commands.add_parser(name, help=about)
    return parser
