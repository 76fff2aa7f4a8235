"""``wgvsock ping [ENCLAVE] [-c N] [-i S]``: probe each layer of the tunnel to an enclave, and measure the times.

The running relay checks three layers in each round. Each layer proves something different:

stream      A connection to the enclave's port, over which the enclave has proved its WireGuard key: the agent runs.
handshake   Session keys that both sides have proved and that have not expired: the peer is the attested enclave.
ip          The reply of the enclave's kernel to an ICMP echo request through the session: packets reach the enclave's
            interface and return. It does not prove that the application listens, or that the relay forwards packets to
            other networks. For the latter, see "wgvsock status".

Exit status: 0 if every layer answered in at least one round, otherwise 1. The error then names the first layer that did
not answer in the last round. 3 if the relay is not running.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from wgvsock.cli.output import print_json, put_lines
from wgvsock.cli.status import ask, socket_path
from wgvsock.errors import ConfigurationError, TransportError, WgvsockError
from wgvsock.text import meant, shortened

_ROUNDS: Final = 4
_MAX_ROUNDS: Final = 100_000
"""About a day at one round a second. Every round is kept for the summary."""

_PAUSE: Final = 1.0
_MAX_NAME: Final = 100
"""Most characters of a name or an address from the relay's answer."""

_MAX_NUMBER: Final = 1e12
"""Milliseconds or seconds. No valid time is that long."""


class UnansweredError(WgvsockError):
    """A layer of the tunnel to an enclave does not answer."""

    code = "WGV-E057"


@dataclass(frozen=True, slots=True)
class Layer:
    """The result of one layer in one round.

    Attributes:
        ok: Whether it answers.
        took: Milliseconds of the connection attempt, the handshake, or the round trip. None: unknown.
        age: Seconds since then. None for a layer that each round probes anew.
    """

    ok: bool
    took: float | None
    age: float | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """The result of one round.

    Attributes:
        enclave: Name of the enclave.
        destination: Its address, or "" if there is no session.
        stream: The first layer.
        handshake: The second layer.
        ip: The third layer.
        path: What the relay's own probe knows (see `wgvsock.tunnel.probe`). None: nothing.
    """

    enclave: str
    destination: str
    stream: Layer
    handshake: Layer
    ip: Layer
    path: bool | None

    @property
    def failed(self) -> str | None:
        """The first layer that does not answer."""
        layers = {"stream": self.stream, "handshake": self.handshake, "ip": self.ip}
        return next((name for name, layer in layers.items() if not layer.ok), None)


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of all rounds.

    Attributes:
        sent: Number of rounds.
        answered: Number of rounds in which every layer answered.
        times: The round-trip times of those, in milliseconds.
        failed: The first layer that failed in the last round, if no round was answered.
    """

    sent: int
    answered: int
    times: tuple[float, ...]
    failed: str | None

    @property
    def lost_percent(self) -> float:
        """Percentage of rounds that were not answered."""
        return 100 * (self.sent - self.answered) / self.sent

    def rtt(self) -> dict[str, float] | None:
        """Minimum, mean and maximum round-trip time in milliseconds, or None."""
        times = self.times
        return {"min": min(times), "avg": sum(times) / len(times), "max": max(times)} if times else None


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``ping`` to the commands of ``wgvsock``."""
    parser = commands.add_parser(
        "ping",
        help="probe an enclave through each layer of its tunnel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("enclave", nargs="?", metavar="ENCLAVE", help="its name, if the relay serves several")
    parser.add_argument(
        "-c", "--count", type=_count, default=_ROUNDS, metavar="N", help="number of rounds (default: %(default)d)"
    )
    parser.add_argument(
        "-i",
        "--interval",
        type=_interval,
        default=_PAUSE,
        metavar="S",
        help="time between two rounds (default: %(default)g s)",
    )
    parser.add_argument("--config", metavar="FILE", help="the relay's configuration, which names its socket")
    parser.add_argument("--name", help="the relay's name, instead of its configuration's")
    parser.add_argument("--socket", metavar="PATH", help="the relay's control socket")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command, and return its exit status.

    Raises:
        UnansweredError: There was no round in which every layer answered.
    """
    path = args.socket or socket_path("relay", args.config, args.name)
    rounds: list[Round] = []
    try:
        while len(rounds) < args.count:
            if rounds:
                time.sleep(args.interval)
            rounds.append(look(path, args.enclave))
            if not args.json:
                put_lines(render(len(rounds), rounds[-1]))
    except KeyboardInterrupt:
        if not rounds:
            raise
    summary = summarise(rounds)
    if args.json:
        print_json(_as_json(rounds, summary))
    else:
        put_lines(render_summary(rounds[-1].enclave, summary))
    if summary.failed is not None:
        raise unanswered(rounds[-1])
    return 0


def look(path: str, enclave: str | None) -> Round:
    """Make one round.

    Raises:
        ConfigurationError: The relay has several enclaves, or none of this name.
        TransportError: The relay is not running, or something else listens at the path.
    """
    query = f"?{urlencode({'enclave': enclave})}" if enclave is not None else ""
    answer = ask(path, "POST", f"/ping{query}")
    names = answer.get("enclaves")
    if isinstance(names, list):
        known = ", ".join(shortened(str(name), _MAX_NAME) for name in names[:_MAX_NAME])
        raise ConfigurationError(
            "cannot tell which enclave to probe" if enclave is None else f"the relay has no enclave {enclave}",
            why=f"it serves {known}" if known else "it serves none at present",
            fix=meant(enclave or "", map(str, names)) if known else "see wgvsock status",
        )
    return _parse(path, answer)


def summarise(rounds: list[Round]) -> Summary:
    """The result of one or more rounds."""
    answered = [each for each in rounds if each.failed is None]
    return Summary(
        sent=len(rounds),
        answered=len(answered),
        times=tuple(each.ip.took for each in answered if each.ip.took is not None),
        failed=None if answered else rounds[-1].failed,
    )


def render(number: int, found: Round) -> list[str]:
    """A round as text. The first has a heading."""
    heading = [f"{found.enclave} ({found.destination or 'no address yet'})"] if number == 1 else []
    stream = f"{_milliseconds(found.stream)} to connect, {_age(found.stream)}" if found.stream.ok else "DOWN"
    handshake = f"{_milliseconds(found.handshake)}, {_age(found.handshake)}" if found.handshake.ok else "NONE"
    ip = _milliseconds(found.ip) if found.ip.ok else "NO REPLY"
    return [*heading, f"{number}: stream {stream} | handshake {handshake} | ip {ip}"]


def render_summary(enclave: str, summary: Summary) -> list[str]:
    """The summary as text."""
    rounds = "1 round" if summary.sent == 1 else f"{summary.sent} rounds"
    lines = [f"--- {enclave}: {rounds}, {summary.answered} answered, {summary.lost_percent:.3g}% lost"]
    if rtt := summary.rtt():
        lines.append(f"rtt min/avg/max = {rtt['min']:.3f}/{rtt['avg']:.3f}/{rtt['max']:.3f} ms")
    return lines


def unanswered(found: Round) -> UnansweredError:
    """The error for the first layer without an answer."""
    if not found.stream.ok:
        return UnansweredError(
            f"{found.enclave}: no stream",
            why="no connection to the enclave's port has proved the enclave's WireGuard key",
            fix="check in wgvsock status what the relay waits for, that the enclave is running, and its CID and ports",
        )
    if not found.handshake.ok:
        return UnansweredError(
            f"{found.enclave}: no WireGuard session",
            why="there is a stream, but no session keys that both sides have proved and that have not expired",
            fix="check in wgvsock status that the enclave is attested, and in its log why it answers no handshake",
        )
    if found.path is True:
        return UnansweredError(
            f"{found.enclave}: no reply to an echo request",
            why="packets from the enclave arrive, so its kernel or its packet filter drops ICMP echo",
            fix="nothing is broken; to measure the path, let the enclave answer ICMP echo from the relay's address",
        )
    return UnansweredError(
        f"{found.enclave}: no reply to an echo request",
        why="stream and session work, but the enclave's kernel "
        + ("no longer answers" if found.path is False else "has never answered"),
        fix="inside the enclave, check interface, addresses, routes, packet filter and net.ipv4.icmp_echo_ignore_all",
    )


def _as_json(rounds: list[Round], summary: Summary) -> dict[str, Any]:
    def layer(found: Layer) -> dict[str, Any]:
        return {"ok": found.ok, "ms": found.took, **({} if found.age is None else {"age_seconds": found.age})}

    return {
        "enclave": rounds[-1].enclave,
        "destination": rounds[-1].destination or None,
        "rounds": [
            {"stream": layer(each.stream), "handshake": layer(each.handshake), "ip": layer(each.ip)} for each in rounds
        ],
        "sent": summary.sent,
        "answered": summary.answered,
        "lost_percent": round(summary.lost_percent, 3),
        "rtt_ms": {name: round(value, 3) for name, value in rtt.items()} if (rtt := summary.rtt()) else None,
        "path": rounds[-1].path,
        "failed": summary.failed,
    }


def _parse(path: str, answer: dict[str, Any]) -> Round:
    """Parse an answer, which may come from another version or another program.

    Raises:
        TransportError: It is not an answer to a ping.
    """

    def layer(name: str, took: str, age: str = "") -> Layer:
        found = answer[name]
        return Layer(found["ok"] is True, _number(found[took]), _number(found[age]) if age else None)

    try:
        stream = layer("stream", "connect_ms", "connected_seconds")
        handshake = layer("handshake", "took_ms", "age_seconds")
        ip, destination, known = layer("ip", "rtt_ms"), answer["ip"]["destination"], answer["ip"]["path"]
        return Round(
            enclave=shortened(str(answer["enclave"]), _MAX_NAME),
            destination=shortened(str(destination), _MAX_NAME) if destination is not None else "",
            stream=stream,
            handshake=handshake,
            ip=ip,
            path=known if isinstance(known, bool) else None,
        )
    except (KeyError, TypeError, ValueError):
        raise TransportError(
            f"cannot ping through the service at {path}",
            why="its answer is not one to a ping",
            fix="compare the versions of both",
        ) from None


def _number(value: object) -> float | None:
    """A time, or None. Refuses NaN, and integers of thousands of digits, which no float can hold."""
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 <= value < _MAX_NUMBER:
        raise ValueError
    return float(value)


def _milliseconds(layer: Layer) -> str:
    return "?" if layer.took is None else f"{layer.took:.3f} ms"


def _age(layer: Layer) -> str:
    return "?" if layer.age is None else f"{layer.age:.0f} s ago"


def _count(text: str) -> int:
    count = int(text)
    if not 1 <= count <= _MAX_ROUNDS:
        raise argparse.ArgumentTypeError(f"not a number of rounds from 1 to {_MAX_ROUNDS}")
    return count


def _interval(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 3600:  # also refuses NaN
        raise argparse.ArgumentTypeError("not a number of seconds from 0 to 3600")
    return seconds
