"""The verbs of ``python -m lab`` for a laboratory that stays up: up, down, status, sh, logs, capture, fault."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab import standing
from lab.backends import backend_class, choose
from lab.capture import LINKTYPE_ETHERNET, LINKTYPE_RAW, write_pcap_header, write_pcap_record
from lab.errors import LabError
from lab.ladder import Ladder
from lab.topology import PACKET_POINTS, Node, Point

SCHEMA = "wgvsock/v1"


def up(arguments: argparse.Namespace) -> int:
    """Raise the laboratory; one that stands already is left as it is."""
    if standing.is_standing():
        ladder = standing.find()
        if ladder.look_ready():
            say(f"the {ladder.backend.name} laboratory is up already")
            return _tell_how_to_use(ladder)
        say("the laboratory that was up is broken, and is taken down first")
        _take_down(ladder)
    name, why = choose(arguments.backend)
    say(f"backend {name}: {why}")
    ladder = Ladder(backend_class(name)("up"))
    timed("network, servers, signer, tap", ladder.backend.up)
    standing.write_down(ladder)  # a step that fails leaves it standing, to be looked at
    timed("relay started", ladder.start_relay)
    timed("enclave started", ladder.start_enclave)
    standing.write_down(ladder)
    timed("provisioned, attested, tunnel up", ladder.wait_ready)
    timed("application answers", ladder.wait_application)
    return _tell_how_to_use(ladder)


def _tell_how_to_use(ladder: Ladder) -> int:
    topology = ladder.topology
    port = topology.application.http_port
    say("")
    say("  python -m lab status                         how it is")
    say(f"  python -m lab sh enclave                     a shell in the enclave: try ping {topology.external4}")
    say(f"  python -m lab sh external                    outside: try http://{topology.pod4}:{port}/")
    say("  python -m lab logs relay -f                  what the Relay says")
    say("  python -m lab capture vsock -o vsock.pcap    packets or bytes at a point")
    say("  python -m lab fault stall | resume | kill relay | ...")
    say("  python -m lab down                           take it away")
    return 0


def down(arguments: argparse.Namespace) -> int:
    """Take the laboratory away."""
    del arguments
    if not standing.is_standing():
        say("there is no laboratory")
        return 0
    left = _take_down(standing.find())
    if left:
        raise LabError("the laboratory left something behind", why="; ".join(left))
    say("nothing is left of it")
    return 0


def _take_down(ladder: Ladder) -> list[str]:
    with contextlib.suppress(LabError):
        ladder.stop()
    ladder.backend.down()
    standing.forget()
    return ladder.backend.leftovers()


def status(arguments: argparse.Namespace) -> int:
    """Say how it is."""
    ladder = standing.find()
    services = {"relay": ladder.backend.status(Node.POD), "enclave": ladder.backend.status(Node.ENCLAVE)}
    ready = bool(services["relay"] and services["relay"]["ready"])
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "backend": ladder.backend.name,
        "directory": str(ladder.backend.directory),
        "ready": ready,
        "services": services,
        "vsock": ladder.backend.tap.status(),
        "addresses": {name: getattr(ladder.topology, name) for name in _ADDRESSES},
    }
    if arguments.json:
        print(json.dumps(report))
    else:
        print(f"{report['backend']} laboratory in {report['directory']}")
        for name, service in services.items():
            process = ladder.backend.process(name)
            print(f"  {name:<9} {'pid ' + str(process.pid) if process else 'not running':<12} {_state(service)}")
        print(f"  {'vsock':<9} {len(report['vsock']['connections'])} connections, faults: {_faults(report['vsock'])}")
        for name, address in report["addresses"].items():
            print(f"  {name:<9} {address}")
    return 0 if ready else 4


_ADDRESSES = ("enclave4", "enclave6", "relay4", "relay6", "pod4", "pod6", "external4", "external6")


def _state(service: dict[str, Any] | None) -> str:
    return "does not answer" if service is None else f"{service['state']}{', ready' if service['ready'] else ''}"


def _faults(tap: dict[str, Any]) -> str:
    return ", ".join(tap["faults"]) or "none"


def shell(arguments: argparse.Namespace) -> int:
    """Become a shell, or a command, in one of the machines."""
    command = arguments.command or [os.environ.get("SHELL", "/bin/sh")]
    enter = standing.find().backend.enter(Node(arguments.node))
    os.execvp(enter[0], [*enter, *command])  # noqa: S606 (becomes it)


def logs(arguments: argparse.Namespace) -> int:
    """Print a process's log."""
    folder = standing.find().backend.directory / "logs"
    names = sorted(path.stem for path in folder.glob("*.log"))
    if arguments.name not in names:
        raise LabError(f"there is no log of {arguments.name!r}", fix=f"choose one of {', '.join(names)}")
    follow = ["-n", "+1", *(["-f"] if arguments.follow else []), str(folder / f"{arguments.name}.log")]
    os.execvp("tail", ["tail", *follow])  # noqa: S606 (becomes it)


def capture(arguments: argparse.Namespace) -> int:
    """Write what passes at a point to a pcap file, until interrupted."""
    backend = standing.find().backend
    point = Point(arguments.point)
    with contextlib.suppress(KeyboardInterrupt):
        if point not in PACKET_POINTS:
            shutil.copy(backend.tap.recording, arguments.output)
            say(f"everything that has crossed the vsock point so far is in {arguments.output}")
            return 0
        running = backend.capture(point)
        say(f"capturing at {point}; interrupt to end")
        written = 0
        with Path(arguments.output).open("wb") as stream:
            tun = PACKET_POINTS[point][1].startswith("wg")
            write_pcap_header(stream, LINKTYPE_RAW if tun else LINKTYPE_ETHERNET)
            while True:
                for packet in running.packets()[written:]:
                    write_pcap_record(stream, packet.time, packet.data)
                    written += 1
                stream.flush()
                time.sleep(0.1)
    return 0


def fault(arguments: argparse.Namespace) -> int:
    """Break something, or mend it."""
    ladder = standing.find()
    kind, *rest = arguments.fault
    tap = ladder.backend.tap
    match kind, rest:
        case "stall" | "hold" | "drop" | "refuse" | "resume", []:
            getattr(tap, kind)()
        case "delay", [seconds]:
            tap.delay(float(seconds))
        case "flip", ["enclave" | "relay" as end]:
            tap.flip(to=end, offset=20)
        case "kill", ["relay" | "enclave" as name]:
            if (process := ladder.backend.process(name)) is None:
                raise LabError(f"the {name} does not run")
            process.kill()
        case "restart", ["relay"]:
            ladder.restart_relay()
        case "restart", ["enclave"]:
            ladder.restart_enclave()
        case "nsm", knobs:
            ladder.backend.nsm.set_faults(**dict(_knob(knob) for knob in knobs))
        case _:
            raise LabError(f"there is no fault {' '.join(arguments.fault)!r}", fix="see python -m lab fault --help")
    standing.write_down(ladder)
    return 0


def _knob(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    return name, json.loads(value) if separator else True


def say(text: str) -> None:
    """Progress goes to standard error."""
    print(text, file=sys.stderr, flush=True)


def timed(what: str, work: Callable[[], object]) -> None:
    """Do a phase and say how long it took."""
    begin = time.monotonic()
    work()
    say(f"  {time.monotonic() - begin:6.2f} s  {what}")


FAULTS = """faults at the vsock point: stall, hold, drop, refuse, delay SECONDS, flip enclave|relay; resume ends them.
of the services: kill relay|enclave, restart relay|enclave.
of the security module: nsm [debug] [wrong_root] [clock_offset=-600] ... (lab/nsm/faults.py); nsm alone ends them."""


def add_parsers(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = verbs.add_parser("up", help="raise a laboratory that stays up")
    verb.add_argument("--backend", default=os.environ.get("LAB", ""), help="default: $LAB, else the best there is")
    verb.set_defaults(run=up)
    verbs.add_parser("down", help="take it away").set_defaults(run=down)
    verb = verbs.add_parser("status", help="how it is")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(run=status)
    verb = verbs.add_parser("sh", help="a shell or a command in one of its machines")
    verb.add_argument("node", choices=[str(node) for node in Node])
    verb.add_argument("command", nargs=argparse.REMAINDER)
    verb.set_defaults(run=shell)
    verb = verbs.add_parser("logs", help="what a process has said")
    verb.add_argument("name", help="relay, enclave, tap, signer, external-server, …")
    verb.add_argument("-f", "--follow", action="store_true")
    verb.set_defaults(run=logs)
    verb = verbs.add_parser("capture", help="packets at a capture point, as pcap")
    verb.add_argument("point", choices=[str(point) for point in Point])
    verb.add_argument("-o", "--output", required=True, metavar="FILE")
    verb.set_defaults(run=capture)
    verb = verbs.add_parser(
        "fault", help="break something", epilog=FAULTS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verb.add_argument("fault", nargs="+")
    verb.set_defaults(run=fault)
