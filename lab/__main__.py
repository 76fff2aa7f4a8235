"""``python -m lab``: the demonstration, faults, soaks, and laboratories that stay up for manual use."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from lab.backends import backend_class, choose
from lab.cli.commands import add_parsers
from lab.cli.invocation import as_typed
from lab.errors import LabUnavailableError
from wgvsock.cli.ending import run_command
from wgvsock.cli.output import CommandParser
from wgvsock.errors import WgvsockError


def demo(arguments: argparse.Namespace) -> int:
    """Run the demonstration."""
    from lab.cli.demo import Demonstration
    from lab.cli.narration import silent, to_terminal
    from lab.ladder import Ladder

    enter_user_namespace(arguments)
    name, _ = choose("netns")
    ladder = Ladder(backend_class(name)(f"{os.getpid():x}"))
    demonstration = Demonstration(ladder, silent() if arguments.json else to_terminal())
    try:
        ok = demonstration.run()
    finally:
        ladder.backend.down()
    if arguments.json:
        print(json.dumps(demonstration.record))
    return 0 if ok else 1


def schedule(arguments: argparse.Namespace) -> int:
    """Play a schedule of faults in a new laboratory."""
    from lab.schedule.command import run

    enter_user_namespace(arguments)
    return run(arguments.seed, arguments.faults, arguments.enclaves)


def soak(arguments: argparse.Namespace) -> int:
    """Run a new laboratory under load, and look for growth."""
    from lab.soak.run import run

    enter_user_namespace(arguments)
    return run(arguments.minutes)


def tryout(arguments: argparse.Namespace) -> int:
    """Start a relay and an enclave in steps that a person could type."""
    from lab.cli import tryout as steps
    from lab.netns import privilege

    if reason := privilege.unavailable() if os.geteuid() == 0 else None:
        raise LabUnavailableError(
            "cannot create network namespaces", why=f"{reason.kind}: {reason.what}", fix=reason.fix
        )
    if not privilege.inside_user_namespace():
        privilege.reenter(["-m", "lab", *arguments.argv], user=arguments.userns or os.geteuid() != 0)
    return steps.run(page=arguments.markdown)


def enter_user_namespace(arguments: argparse.Namespace) -> None:
    """Re-run in a user namespace if requested or if there is no other way. Returns if neither is the case."""
    from lab.netns import privilege

    if privilege.inside_user_namespace() or not (arguments.userns or os.geteuid() != 0):
        return
    privilege.reenter(["-m", "lab", *arguments.argv])


def parser() -> CommandParser:
    """Return the parser of the command line."""
    root = CommandParser(prog="python -m lab", description=__doc__)
    verbs = root.add_subparsers(dest="verb", required=True, metavar="VERB")
    verb = verbs.add_parser("demo", help="the whole paper in one command, with every step checked")
    verb.add_argument("--json", action="store_true", help="print only one JSON object on standard output")
    verb.add_argument("--userns", action="store_true", help="use a user namespace even as root")
    verb.set_defaults(run=demo)
    verb = verbs.add_parser("schedule", help="inject faults in random order, drawn from a seed, under traffic")
    verb.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000), help="default: random")
    verb.add_argument("--faults", type=int, default=60, help="number of faults (default: 60)")
    verb.add_argument("--enclaves", type=int, choices=(1, 2), default=2, help="enclaves behind the Relay (default: 2)")
    verb.add_argument("--userns", action="store_true", help="use a user namespace even as root")
    verb.set_defaults(run=schedule)
    verb = verbs.add_parser("soak", help="run mixed traffic and churn; fails if anything grows")
    verb.add_argument("--minutes", type=float, default=20.0, help="duration (default: 20)")
    verb.add_argument("--userns", action="store_true", help="use a user namespace even as root")
    verb.set_defaults(run=soak)
    verb = verbs.add_parser("try", help="start a relay and an enclave in steps that you could type; leaves a shell")
    verb.add_argument("--markdown", type=Path, metavar="FILE", help="write the transcript as a page")
    verb.add_argument("--userns", action="store_true", help="use a user namespace even as root")
    verb.set_defaults(run=tryout)
    add_parsers(verbs)
    return root


def main(argv: Sequence[str]) -> int:
    """Run one verb, and return the exit code."""
    return run_command(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    arguments = parser().parse_args(argv)
    arguments.argv = list(argv)
    try:
        return int(arguments.run(arguments))
    except WgvsockError as error:
        lines = [f"error[{error.code}]: {error.what}"]
        # A reason can be the end of a guest's console, whose lines are kept.
        lines += [f"  {label}: {as_typed(text)}" for label, text in (("why", error.why), ("fix", error.fix)) if text]
        with contextlib.suppress(OSError):  # without standard error, the exit status says it
            print("\n".join(lines), file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
