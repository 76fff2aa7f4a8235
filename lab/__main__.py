"""``python -m lab``: the demonstration, and laboratories that stay up to be used by hand."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from lab.backends import backend_class, choose
from lab.commands import add_parsers
from wgvsock.errors import WgvsockError


def demo(arguments: argparse.Namespace) -> int:
    """Run the demonstration."""
    from lab.demo import Demonstration
    from lab.ladder import Ladder
    from lab.narration import silent, to_terminal

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


def enter_user_namespace(arguments: argparse.Namespace) -> None:
    """Go on in a user namespace when told to, or when there is no other way; returns where there is no need."""
    from lab.netns import privilege

    if privilege.inside_user_namespace() or not (arguments.userns or os.geteuid() != 0):
        return
    privilege.reenter(["-m", "lab", *arguments.argv])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    verbs = root.add_subparsers(dest="verb", required=True, metavar="VERB")
    verb = verbs.add_parser("demo", help="the whole paper in one command, every step looked at")
    verb.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else")
    verb.add_argument("--userns", action="store_true", help="in a user namespace, even as root (the way without root)")
    verb.set_defaults(run=demo)
    add_parsers(verbs)
    return root


def main(argv: Sequence[str]) -> int:
    """Run one verb; the exit code."""
    arguments = parser().parse_args(argv)
    arguments.argv = list(argv)
    try:
        return int(arguments.run(arguments))
    except WgvsockError as error:
        print(f"error[{error.code}]: {error.what}", file=sys.stderr)
        for label, text in (("why", error.why), ("fix", error.fix)):
            if text:
                print(f"  {label}: {text}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has enough; the interpreter must not complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
