"""``python tools/manuals.py [DIR]``: generates man pages and shell completions from the parsers of the commands.

The files in share/ are part of the repository, so that building a wheel needs neither shtab nor argparse-manpage. A
test checks that they are current. `make manuals` regenerates them.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import shtab
from argparse_manpage.manpage import Manpage

from wgvsock import __version__
from wgvsock.cli.device import add_arguments
from wgvsock.cli.entry import COMMANDS, make_parser
from wgvsock.cli.output import CommandParser

ROOT = Path(__file__).resolve().parents[1]
WIDTH = "80"


def whole_parser() -> CommandParser:
    """Return the parser of ``wgvsock`` with all subcommands."""
    parser = CommandParser(prog="wgvsock", description=make_parser([]).description)
    parser.add_argument("--version", action="version", version=__version__, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"wgvsock.cli.{name}").add_parser(commands)
    return parser


def device_parser() -> CommandParser:
    """Return the parser of ``wgvsock-device``."""
    parser = CommandParser(prog="wgvsock-device", description="userspace WireGuard for wg and wg-quick")
    parser.add_argument("--version", action="version", version=__version__, help="print the version and exit")
    add_arguments(parser)
    return parser


def with_files(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Return the parser after marking its file and directory arguments for shtab."""
    kinds = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}
    for action in parser._actions:  # noqa: SLF001 (argparse offers no other way)
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for child in action.choices.values():
                with_files(child)
        elif isinstance(action.metavar, str) and (kind := kinds.get(action.metavar)):
            action.complete = kind  # type: ignore[attr-defined]
    return parser


def files() -> Iterator[tuple[str, str]]:
    """Yield each file's path below share/ and its text."""
    os.environ["COLUMNS"] = WIDTH  # else argparse uses the terminal's width
    for make in (whole_parser, device_parser):
        name = make().prog
        yield f"man/man1/{name}.1", man_page(make())
        yield (
            f"bash-completion/completions/{name}",
            ending_in_one_line_feed(shtab.complete(with_files(make()), "bash")),
        )
        yield f"zsh/site-functions/_{name}", ending_in_one_line_feed(shtab.complete(with_files(make()), "zsh"))


def man_page(parser: argparse.ArgumentParser) -> str:
    """Return a page of section 1 without a date, so that the same parser gives the same bytes."""
    about = {"description": parser.description, "version": __version__, "manual_title": "wgvsock"}
    page = Manpage(parser, _data={**about, "project_name": "wgvsock"})
    page.date = ""
    lines = str(page).splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def ending_in_one_line_feed(text: str) -> str:
    """Strip trailing white space, and end the text with a single line feed."""
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines()) + "\n"


def main(folder: Path) -> None:
    """Write all files."""
    for name, text in files():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "share")
