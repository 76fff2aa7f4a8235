"""``wgvsock relay reload|reattest``: commands to a running relay, whose outcome determines the exit status.

Standard output has one line for each enclave. Exit status: 0 done, 3 the relay is not running, 6 not done within
``--timeout`` seconds, otherwise that of the first error (2: the configuration is wrong or needs a restart, 5: an
enclave was refused).
"""

from __future__ import annotations

import argparse
import time
from typing import Any, Final

from wgvsock.cli.foreign import at, text
from wgvsock.cli.output import note, print_failure, print_json, put
from wgvsock.cli.status import EXIT_TIMEOUT, ask, socket_path
from wgvsock.errors import WgvsockError

_MAX_TEXT: Final = 500
_MAX_EXIT: Final = 125
"""Higher statuses have a meaning to the shell."""


class UnfinishedError(WgvsockError):
    """The relay had not finished when the command's time was up."""

    code = "WGV-E101"
    exit_code = EXIT_TIMEOUT


def add_orders(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``reload`` and ``reattest`` to the verbs of ``wgvsock relay``."""
    reload = verbs.add_parser(
        "reload",
        help="reload the configuration, and report the outcome",
        description="The relay reads its configuration file again and applies the changes. On an error it changes "
        "nothing. The outcome determines the exit status.",
    )
    reattest = verbs.add_parser(
        "reattest",
        help="attest the enclaves again now",
        description="With --wait, the outcome determines the exit status: 0 attested, 5 refused.",
    )
    reattest.add_argument("--wait", action="store_true", help="wait until every enclave is attested or refused")
    for parser in (reload, reattest):
        parser.add_argument("--timeout", type=_seconds, default=60.0, metavar="S", help="default: %(default)g s")
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Send the command to the relay, and report the outcome.

    Raises:
        UnfinishedError: The relay has not finished within the timeout.
        TransportError: The relay is not running, or does not answer.
    """
    path = socket_path("relay", args.config)
    deadline = time.monotonic() + args.timeout
    answer = ask(path, "POST", f"/{args.verb}")
    number = answer.get("order")
    if not isinstance(number, int):
        note("the relay accepted the command, but does not report the outcome")
        return 0
    wants_outcome = args.verb == "reload" or args.wait
    while wants_outcome and answer.get("done") is not True and time.monotonic() < deadline:
        answer = ask(path, "GET", f"/order?number={number}")
    if args.json:
        print_json(answer)
    return _end(answer, args, wants_outcome=wants_outcome)


def _end(answer: dict[str, Any], args: argparse.Namespace, *, wants_outcome: bool) -> int:
    done = "reloaded" if args.verb == "reload" else "attested"
    enclaves = answer.get("enclaves")
    outcomes = list(enclaves.items()) if isinstance(enclaves, dict) else []
    errors = [error for error in (answer.get("error"), *(at(one, "error") for _, one in outcomes)) if error]
    if not args.json:
        for name, one in outcomes:
            state = "failed" if at(one, "error") else done if at(one, "done") is True else "ordered"
            put(f"{text(name, most=_MAX_TEXT)}: {state}")
        for name in answer.get("replacing") or []:
            put(f"{text(name, most=_MAX_TEXT)}: is being replaced; wgvsock status shows the progress")
    for error in errors:
        print_failure(*(text(error, key, most=_MAX_TEXT) for key in ("code", "what", "why", "fix")))
    if errors:
        status = at(errors[0], "exit")
        return status if isinstance(status, int) and 0 < status <= _MAX_EXIT else 1
    if wants_outcome and answer.get("done") is not True:
        raise UnfinishedError(
            f"{args.verb} is not done",
            why=f"the relay was still working on it after {args.timeout:g} s",
            fix="check in wgvsock status what it waits for, or set a longer --timeout",
        )
    return 0


def _seconds(value: str) -> float:
    seconds = float(value)
    if not seconds >= 0:  # also refuses NaN, which would wait forever
        raise argparse.ArgumentTypeError("not a number of seconds from 0 up")
    return seconds
