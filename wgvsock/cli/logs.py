"""``wgvsock logs [-f] [--enclave NAME]``: show the output of an enclave's application that the relay has kept.

Output leaves an enclave only if its image permits it: ``forward_output`` in the table ``[application]`` of its
enclave.toml.
"""

from __future__ import annotations

import argparse
from typing import Any, Final
from urllib.parse import urlencode

from wgvsock.cli.output import note, put_lines
from wgvsock.cli.status import add_socket, ask, socket_path
from wgvsock.errors import ConfigurationError, TransportError
from wgvsock.text import meant

_MAX_ROUNDS: Final = 100
"""Most answers of one listing: an application may write faster than we read."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``logs`` to the commands of ``wgvsock``."""
    parser = commands.add_parser("logs", help="show what an enclave's application writes", description=__doc__)
    parser.add_argument("--enclave", metavar="NAME", default="", help="default: the only one")
    add_socket(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="continue until interrupted")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command, and return its exit status.

    Raises:
        ConfigurationError: There is no such enclave.
        TransportError: The relay cannot be reached, or gives an invalid answer.
    """
    path = args.socket or socket_path("relay", args.config)
    number, rounds = 0, 0
    while args.follow or rounds < _MAX_ROUNDS:
        answer = ask_about(
            path, "GET", "/logs", {"enclave": args.enclave, "after": str(number), "wait": f"{args.follow:d}"}
        )
        lines, last = answer.get("lines"), answer.get("last")
        if not isinstance(lines, list) or type(last) is not int:
            raise TransportError(
                f"{path} gave an invalid answer", why="it is not a relay of this version", fix="check the path"
            )
        put_lines(f"{_text(line, 'stream')}: {_text(line, 'text')}" for line in lines)
        if not lines and not args.follow:
            break
        number, rounds = last, rounds + 1
    if not number:
        note("there is no output: the image decides whether it leaves the enclave ([application] forward_output)")
    return 0


def ask_about(path: str, method: str, target: str, query: dict[str, str]) -> dict[str, Any]:
    """The relay's answer to a request about one enclave.

    Raises:
        ConfigurationError: There is no such enclave, or the request has to name one.
        TransportError: The relay cannot be reached.
    """
    answer = ask(path, method, f"{target}?{urlencode(query)}")
    if "enclaves" in answer:
        names = [str(name) for name in answer["enclaves"]]
        served = ", ".join(names) or "none"
        named = query.get("enclave")
        raise ConfigurationError(
            f'there is no enclave "{named}"' if named else "the relay serves several enclaves, or none",
            why=f"this relay serves {served}",
            fix=meant(named or "", names),
        )
    return answer


def _text(line: object, key: str) -> str:
    return str(line.get(key)) if isinstance(line, dict) else "?"
