"""``wgvsock explain [NAME]``: explain an error code, a check of a document or a drop reason, without a network.

NAME is a code (WGV-E031, e31, 31), a check (pcr.set) or a drop reason (no_route). Without NAME, it lists all of them.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Final

from wgvsock.cli import catalogue
from wgvsock.cli.output import print_json, put_lines
from wgvsock.errors import ConfigurationError
from wgvsock.text import meant

_WIDTH: Final = 80  # columns
_MEANING: Final = _WIDTH - 21  # after a name in the list


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``explain`` to the commands of ``wgvsock``."""
    parser = commands.add_parser("explain", help="explain an error code, a check or a drop reason", description=__doc__)
    parser.add_argument("name", metavar="NAME", nargs="?", help="such as WGV-E031, pcr.set or no_route; default: all")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command, and return its exit status.

    Raises:
        ConfigurationError: The catalogue has no such name.
        SystemSetupError: There is no catalogue.
    """
    every = catalogue.entries()
    if args.name is None:
        if args.json:
            print_json({"entries": [asdict(entry) for entry in every]})
        else:
            put_lines(
                f"{entry.name:<20} {textwrap.shorten(entry.meaning, _MEANING, placeholder=' …')}" for entry in every
            )
        return 0
    wanted = catalogue.normalised(args.name)
    found = [entry for entry in every if entry.name == wanted]
    if not found:
        raise ConfigurationError(
            f"cannot explain {args.name!r}",
            why="it is not an error code, a check or a drop reason of this version",
            fix=meant(wanted, [entry.name for entry in every], "`wgvsock explain` lists all names"),
        )
    if args.json:
        print_json(asdict(found[0]))
    else:
        put_lines(line for entry in found for line in _lines(entry))
    return 0


def _lines(entry: catalogue.Entry) -> Iterator[str]:
    yield f"{entry.name} ({entry.kind})"
    yield from _wrapped("what", entry.meaning)
    if entry.remedy:
        yield from _wrapped("fix", entry.remedy)
    if entry.exit_status is not None:
        yield from _wrapped("exit", str(entry.exit_status))
    yield from _wrapped("more", f"docs/{entry.page}")


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=f"{label + ':':<6}", subsequent_indent=" " * 6)
