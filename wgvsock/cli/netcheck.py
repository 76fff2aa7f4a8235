"""``wgvsock netcheck [ENCLAVE] [--world HOST:PORT]``: find the first broken layer, and its remedy.

The order is: attestation, stream, handshake, path, way out, names, world, application, clock. The checks end at the
first broken layer, as nothing beyond it could work. The relay probes from its own machine. ``--world`` says where to
connect. The default is the first name that the enclave's policy allows.

Exit status: 0 all is well, 4 there are only warnings, 6 a layer is broken, 3 the relay is not running.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlencode

from wgvsock.cli.diagnosis import SLOW_PATH, Finding, diagnose, diagnose_reload
from wgvsock.cli.foreign import at, items, text
from wgvsock.cli.output import add_schema, print_json
from wgvsock.cli.ping import Round, look, unanswered
from wgvsock.cli.screen import Line, Tone, labelled, show, width
from wgvsock.cli.status import EXIT_DEGRADED, EXIT_TIMEOUT, add_socket, ask, socket_path
from wgvsock.cli.units import duration, milliseconds, number
from wgvsock.errors import ConfigurationError, WgvsockError

_MAX_TEXT: Final = 300

State = Literal["ok", "warning", "broken", "not asked"]
_TONES: Final[dict[State, Tone]] = {"ok": "good", "warning": "warn", "broken": "bad", "not asked": "faint"}


class BrokenLayerError(WgvsockError):
    """A layer between the relay and the world is broken."""

    code = "WGV-E102"
    exit_code = EXIT_TIMEOUT


@dataclass(frozen=True, slots=True)
class Check:
    """One layer.

    Attributes:
        layer: Its name.
        state: The verdict.
        what: The finding in words.
        fix: The remedy, or "" if nothing needs one.
    """

    layer: str
    state: State
    what: str
    fix: str = ""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``netcheck`` to the commands of ``wgvsock``."""
    parser = commands.add_parser(
        "netcheck",
        help="find the first broken layer between the relay and the world",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("enclave", nargs="?", metavar="ENCLAVE", help="its name, if the relay serves several")
    parser.add_argument("--world", metavar="HOST:PORT", help="where to connect by TCP, from the relay's machine")
    add_socket(parser, named=True)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_schema(parser, "NETCHECK")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command, and return its exit status.

    Raises:
        BrokenLayerError: A layer is broken, and ``--json`` is not set.
        TransportError: The relay is not running, or does not answer.
    """
    path = args.socket or socket_path("relay", args.config, args.name)
    checks = list(check(path, args.enclave, args.world))
    broken = next((one for one in checks if one.state == "broken"), None)
    if args.json:
        layers = [{"layer": one.layer, "state": one.state, "what": one.what, "fix": one.fix} for one in checks]
        print_json({"ok": broken is None, "broken": None if broken is None else broken.layer, "layers": layers})
    else:
        show(render(checks, width()))
        if broken is not None:
            raise BrokenLayerError(f"{broken.layer} is broken", why=broken.what, fix=broken.fix)
    if broken is not None:
        return EXIT_TIMEOUT
    return EXIT_DEGRADED if any(one.state == "warning" for one in checks) else 0


def render(checks: Iterable[Check], columns: int) -> list[Line]:
    """The layers as text, for a width in columns."""
    lines: list[Line] = []
    for one in checks:
        lines += labelled(one.layer, f"{one.state:<10}{one.what}", columns, _TONES[one.state])
        if one.state == "warning" and one.fix:
            lines += labelled("", f"{'':<10}fix: {one.fix}", columns)
    return lines


def check(path: str, enclave: str | None, world: str | None) -> Iterator[Check]:
    """Check each layer, up to the first broken one.

    Args:
        path: The relay's control socket.
        enclave: Name of the enclave. None: the only one.
        world: Where to connect. None: the first name that the policy allows.
    """
    status = ask(path, "GET", "/status")
    tunnel = _find(status, enclave)
    findings = diagnose(tunnel)
    name = at(tunnel, "name")
    query = {"enclave": name} if isinstance(name, str) else {}

    def inside() -> Iterator[Check]:
        attested = duration(at(tunnel, "attestation", "age_seconds"))
        yield from _judged("attestation", findings, f"attested {attested} ago")
        yield from _layers(look(path, query.get("enclave")), findings)

    def outside() -> Iterator[Check]:
        nat = at(tunnel, "nat")
        yield from _judged("uplink", findings, f"open on {_text(nat, 'uplink')} ({_text(nat, 'backend')})", "way out")
        asked = {**query, "world": world} if world else query
        yield from _beyond(ask(path, "POST", f"/netcheck?{urlencode(asked)}"))

    def above() -> Iterator[Check]:
        application = at(tunnel, "application")
        words = _text(application, "phase") if application else "it does not report"
        yield from _judged("application", findings, words)
        offset = number(at(tunnel, "clock_offset_seconds"))
        yield from _judged("clock", findings, "unknown" if offset is None else f"within {duration(abs(offset))}")
        yield from (_as_check(finding) for finding in diagnose_reload(status))

    yield from _up_to_broken(inside, outside, above)


def _up_to_broken(*parts: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    for part in parts:
        for one in part():
            yield one
            if one.state == "broken":
                return


def _find(status: Any, enclave: str | None) -> Any:
    served = items(status, "enclaves")
    found = [one for one in served if enclave in {None, at(one, "name")}]
    if len(found) != 1:
        names = ", ".join(_text(one, "name") for one in served[:20])
        raise ConfigurationError(
            "cannot tell which enclave to check" if enclave is None else f"the relay has no enclave {enclave}",
            why=f"it serves {names}" if names else "it serves none at present",
            fix="name one of them" if names else "see wgvsock status",
        )
    return found[0]


def _judged(layer: str, findings: list[Finding], well: str, shown: str = "") -> Iterator[Check]:
    """What the relay's own status says about a layer: its problems, or one line if there are none."""
    own = [_as_check(finding, shown) for finding in findings if finding.layer == layer]
    yield from own or [Check(shown or layer, "ok", well)]


def _as_check(finding: Finding, shown: str = "") -> Check:
    return Check(shown or finding.layer, finding.severity, finding.what, finding.fix)


def _layers(found: Round, findings: list[Finding]) -> Iterator[Check]:
    stream, handshake, echo = found.stream, found.handshake, found.ip
    failed = found.failed
    told = unanswered(found) if failed is not None else None
    for layer, one in (("stream", stream), ("handshake", handshake)):
        if failed == layer and told is not None:
            yield Check(layer, "broken", told.why or told.what, told.fix)
            return
        yield Check(layer, "ok", f"{milliseconds(one.took)}, {duration(one.age)} ago")
    if echo.ok and (echo.took or 0.0) >= SLOW_PATH:
        slow = f"slow: the round trip takes {milliseconds(echo.took)}"
        yield Check("path", "warning", slow, "check the load of the parent instance and of the enclave's CPUs")
    elif echo.ok:
        yield Check("path", "ok", f"round trip of {milliseconds(echo.took)} to {found.destination}")
    elif found.path is True:
        yield Check("path", "ok", "packets come from the enclave, but it answers no echo request")
    elif told is not None:
        state: State = "broken" if found.path is False or any(one.layer == "path" for one in findings) else "warning"
        yield Check("path", state, told.why, told.fix)


def _beyond(answer: Any) -> Iterator[Check]:
    if at(answer, "error"):
        raise ConfigurationError(_text(answer, "error", "what"), why=_text(answer, "error", "why"))
    servers = items(answer, "names")[:10]
    well = [one for one in servers if at(one, "ok") is True]
    listed = ", ".join(f"{_text(one, 'server')} in {milliseconds(at(one, 'ms'))}" for one in well)
    silent = ", ".join(f"{_text(one, 'server')}: {_text(one, 'why')}" for one in servers if at(one, "ok") is not True)
    fix = "query it from this machine (dig @SERVER .), or name others in [dns] servers"
    if not servers:
        yield Check(
            "names", "warning", "there is no name server", "name one in [dns] servers or in this machine's resolv.conf"
        )
    elif not well:
        yield Check("names", "broken", f"no name server answers: {silent}", fix)
    elif silent:
        yield Check("names", "warning", f"{listed}; failed: {silent}", fix)
    else:
        yield Check("names", "ok", listed)
    yield _world(at(answer, "world"))


def _world(world: Any) -> Check:
    if world is None:
        return Check("world", "not asked", "there is no destination: name one with --world HOST:PORT")
    where = _text(world, "destination")
    if at(world, "ok") is not True:
        fix = "check the routes, security groups and firewalls beyond this machine, and whether the destination is up"
        return Check("world", "broken", f"{where}: {_text(world, 'why')}", fix)
    if at(world, "denied"):
        fix = "allow it in [egress] if the enclave should reach it"
        return Check("world", "warning", f"{where} answers, but the policy keeps the enclave from it: "
                     f"{_text(world, 'denied')}", fix)  # fmt: skip
    return Check("world", "ok", f"{where} in {milliseconds(at(world, 'ms'))}")


def _text(value: Any, *path: str) -> str:
    return text(value, *path, most=_MAX_TEXT)
