"""``wgvsock version [--json]``: show the version, the commit and the build, and whether it is compiled."""

from __future__ import annotations

import argparse
import platform
from dataclasses import asdict

from wgvsock.cli.output import print_json, put
from wgvsock.release import release


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``version`` to the commands of ``wgvsock``."""
    parser = commands.add_parser("version", help="show version, commit and build", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command, and return its exit status."""
    ours = release()
    if args.json:
        print_json({**asdict(ours), "python": platform.python_version()})
        return 0
    kind = "compiled" if ours.compiled else "pure Python"
    put(f"wgvsock {ours.version}, commit {ours.commit or 'unknown'}, build {ours.build or 'unknown'}, {kind}")
    return 0
