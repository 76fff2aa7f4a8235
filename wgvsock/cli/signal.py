"""``wgvsock signal [NAME] HUP``: send an enclave's application a signal that its image permits.

The permitted signals are listed in the table ``[application]`` of the image's enclave.toml, which is measured with the
image. By default the list is empty.
"""

from __future__ import annotations

import argparse
from typing import get_args

from wgvsock.cli.logs import ask_about
from wgvsock.cli.status import add_socket, socket_path
from wgvsock.relay.errors import SignalError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``signal`` to the commands of ``wgvsock``."""
    from wgvsock.enclave.application.settings import SignalName

    parser = commands.add_parser("signal", help="send an enclave's application a signal", description=__doc__)
    parser.add_argument(
        "enclave", metavar="NAME", nargs="?", default="", help="name of the enclave; default: the only one"
    )
    parser.add_argument("name", metavar="SIGNAL", type=_name, choices=get_args(SignalName), help="such as HUP")
    add_socket(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command, and return its exit status.

    Raises:
        SignalError: The signal was not sent.
        ConfigurationError: There is no such enclave.
        TransportError: The relay cannot be reached.
    """
    path = args.socket or socket_path("relay", args.config)
    answer = ask_about(path, "POST", "/signal", {"enclave": args.enclave, "name": args.name})
    if answer.get("sent") is not True:
        raise SignalError(
            f"cannot send the application SIG{args.name}",
            why=str(answer.get("why") or "the relay gave no reason"),
            fix='the image\'s enclave.toml has to permit it: [application] signals = ["HUP"]',
        )
    return 0


def _name(text: str) -> str:
    return text.upper().removeprefix("SIG")
