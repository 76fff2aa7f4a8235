"""The entry point: finds the subcommand, imports its module alone, and turns errors into three lines and a status."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final

from wgvsock import __version__
from wgvsock.cli.output import print_error
from wgvsock.errors import WgvsockError

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

EXIT_FAILURE: Final = 1
EXIT_INTERRUPTED: Final = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``wgvsock``; returns the exit status (see docs/operations.md)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        args = make_parser(arguments).parse_args(arguments)
        status: int = args.run(args)
        sys.stdout.flush()
    except WgvsockError as error:
        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone; the interpreter must not complain about that when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
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
