"""What ``wgvsock attest`` takes from a relay: the refused documents that it kept, and its policy."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from wgvsock.attestation.policy import Expectations, Policy
from wgvsock.errors import ConfigurationError
from wgvsock.runtime.directory import RUNTIME_DIRECTORY


def add_relay(parser: argparse.ArgumentParser) -> None:
    """Add the option that names a relay."""
    parser.add_argument(
        "-c", "--config", metavar="FILE", help="a relay's configuration: use its policy and the documents that it kept"
    )


def kept_document(args: argparse.Namespace) -> Path | None:
    """Path of the refused document that a relay kept under this name, or None if there is none or FILE is a file."""
    from wgvsock.relay.judgements import find_kept

    if time_kept(args.file) is None:
        return None
    directory = RUNTIME_DIRECTORY
    if args.config is not None:
        from wgvsock.relay.config import load

        directory = load(args.config).runtime_directory
    return find_kept(directory, args.file)


def time_kept(name: str) -> datetime | None:
    """When a relay refused the document of this name, or None if it is an existing file or not such a name."""
    from wgvsock.relay import judgements

    found = judgements.time_kept(name)
    return None if found is None or Path(name).exists() else found


def relay_policy(args: argparse.Namespace) -> tuple[Policy, Expectations] | None:
    """What a relay accepts, and what it knows about the enclave, or None if no relay is named.

    Raises:
        ConfigurationError: The configuration is wrong, there is no such enclave, or several have different policies.
    """
    if args.config is None:
        return None
    from wgvsock.relay.config import load

    found = {spec.name: spec.attestation for spec in load(args.config).specs()}
    wanted = [attestation for name, attestation in found.items() if args.enclave in {None, name}]
    if not wanted or any(one != wanted[0] for one in wanted):
        raise ConfigurationError(
            "cannot tell which enclave's policy to use",
            why=f"the relay serves {', '.join(found)}",
            fix="name one of them with --enclave",
        )
    return wanted[0].policy(), wanted[0].expectations()


def registers_as_text(registers: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line for each PCR that matches, and two for each that differs: the measured and the allowed value."""
    lines = []
    for register in registers:
        if register["equal"]:
            lines.append(f"{register['pcr']:<7}equal")
        else:
            lines.append(f"{register['pcr']:<7}measured  {register['measured'] or 'missing'}")
            lines.append(f"{'':<7}allowed   {register['allowed']}")
    return lines
