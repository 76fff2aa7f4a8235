"""The verbs of ``python -m lab`` for a permanent laboratory: up, down, start, wait, status, sh, logs and others."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

from lab.backend import Backend
from lab.cli import standing
from lab.cli.raising import prepare, raise_up, say, take_down, wait_until_ready
from lab.errors import LabError
from lab.guest.packets import LINKTYPE_ETHERNET, LINKTYPE_RAW, write_pcap_header, write_pcap_record
from lab.ladder import Ladder
from lab.topology import PACKET_POINTS, Node, Point
from lab.watch.observation import VsockHistory
from wgvsock.cli.output import CommandParser
from wgvsock.telemetry.schema import SCHEMA

_FOLLOW_PERIOD = 0.2  # seconds between two checks of something that grows


def up(arguments: argparse.Namespace) -> int:
    """Start the laboratory, or check and repair the running one."""
    raise_up(arguments.backend)
    return _tell_how_to_use(standing.attach())


def fill_cache(arguments: argparse.Namespace) -> int:
    """Download and build, but start nothing."""
    prepare(arguments.backend)
    return 0


def _tell_how_to_use(backend: Backend) -> int:
    topology = backend.topology
    port = topology.application.http_port
    say("")
    say("  python -m lab status                         show its state")
    say(f"  python -m lab sh enclave                     a shell in the enclave: try ping {topology.external4}")
    say(f"  python -m lab sh external                    outside: try wget -qO- http://{topology.pod4}:{port}/")
    say("  python -m lab logs relay -f                  follow the Relay's log")
    say("  python -m lab capture vsock -o vsock.pcap    packets or bytes at a point")
    say("  python -m lab keylog -o keys.log             the tunnel's keys, for Wireshark")
    say("  python -m lab fault stall | resume | kill relay | ...; `up` again repairs what it can")
    say("  python -m lab down                           stop and remove it")
    return 0


def down(arguments: argparse.Namespace) -> int:
    """Stop and remove the laboratory."""
    del arguments
    if not standing.is_standing():
        say("there is no laboratory")
        return 0
    if left := take_down():
        raise LabError("the laboratory left something behind", why="; ".join(left))
    say("nothing is left of it")
    return 0


def start(arguments: argparse.Namespace) -> int:
    """Start what is not running, with the configuration in its machine, and print what was started."""
    with standing.changing() as ladder:
        for name in arguments.name:
            if arguments.again or ladder.backend.process(name) is None:
                _start(ladder, name)
                print(f"{name} started")
    return 0


def wait(arguments: argparse.Namespace) -> int:
    """Wait until the tunnel is ready."""
    del arguments
    wait_until_ready(standing.find())
    return 0


def _start(ladder: Ladder, name: str) -> None:
    """Start a service or a server, after ending a running one."""
    backend = ladder.backend
    servers = {f"{service.node}-server": service for service in ladder.topology.services}
    match name:
        case "relay":
            ladder.restart_relay(_configured(backend, Node.POD, name))
        case "enclave":
            ladder.restart_enclave(_configured(backend, Node.ENCLAVE, name))
        case _ if name in servers:
            if (process := backend.process(name)) is not None:
                process.kill()
            backend.start_server(servers[name]).wait_for_line("ready", backend.deadline(20))
        case _:
            raise LabError(f"there is no {name!r} to start", fix=f"choose one of relay, enclave, {', '.join(servers)}")


def _configured(backend: Backend, node: Node, role: str) -> dict[str, Any] | None:
    """Return the configuration that Ansible, or a person, has put into the machine."""
    done = backend.run(node, ["cat", f"/etc/wgvsock/{role}.toml"])
    return tomllib.loads(done.stdout.decode()) if done.exit_code == 0 else None


def status(arguments: argparse.Namespace) -> int:
    """Print the laboratory's state."""
    ladder = standing.find()
    services = {"relay": ladder.backend.status(Node.POD), "enclave": ladder.backend.status(Node.ENCLAVE)}
    ready = bool(services["relay"] and services["relay"]["ready"])
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "backend": ladder.backend.name,
        "processors": ladder.backend.processors,
        "directory": str(ladder.backend.directory),
        "ready": ready,
        "services": services,
        "vsock": ladder.backend.tap.status(),
        "addresses": {name: getattr(ladder.topology, name) for name in _ADDRESSES},
    }
    if arguments.json:
        print(json.dumps(report))
    else:
        print(f"{report['backend']} laboratory in {report['directory']}, processors {report['processors']}")
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
    """Replace this process by a shell, or a command, in one of the machines."""
    command = arguments.command[arguments.command[:1] == ["--"] :] or ["/bin/sh"]
    enter = standing.attach().enter(Node(arguments.node))
    os.execvp(enter[0], [*enter, *command])  # noqa: S606 (becomes it)


def logs(arguments: argparse.Namespace) -> int:
    """Print a process's log. With ``-f``, follow it until interrupted."""
    backend = standing.attach()
    backend.refresh_logs()
    folder = backend.directory / "logs"
    names = sorted(path.stem for path in folder.glob("*.log"))
    if arguments.name not in names:
        raise LabError(f"there is no log of {arguments.name!r}", fix=f"choose one of {', '.join(names)}")
    with (folder / f"{arguments.name}.log").open("rb") as log:
        while True:
            shutil.copyfileobj(log, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            if not arguments.follow:
                return 0
            backend.detach()
            time.sleep(_FOLLOW_PERIOD)
            backend.refresh_logs()


def capture(arguments: argparse.Namespace) -> int:
    """Write what passes at a point to a pcap file, until interrupted."""
    backend = standing.attach()
    point = Point(arguments.point)
    if point not in PACKET_POINTS:
        backend.tap.refresh()
        shutil.copy(backend.tap.recording, arguments.output)
        say(f"everything that has crossed the vsock point so far is in {arguments.output}")
        return 0
    # Needed if a shell started this process in the background, with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    running = backend.capture(point)
    say(f"capturing at {point}; interrupt to end")
    try:
        with Path(arguments.output).open("wb") as stream:
            tun = PACKET_POINTS[point][1].startswith("wg")
            write_pcap_header(stream, LINKTYPE_RAW if tun else LINKTYPE_ETHERNET)
            written = 0
            while True:
                for packet in running.packets()[written:]:
                    write_pcap_record(stream, packet.time, packet.data)
                    written += 1
                stream.flush()
                backend.detach()
                time.sleep(_FOLLOW_PERIOD)
    except KeyboardInterrupt:
        return 0
    finally:
        running.close()


def key_log(arguments: argparse.Namespace) -> int:
    """Write the keys of every handshake so far, for Wireshark."""
    lines = VsockHistory(standing.attach()).update().key_log
    path = Path(arguments.output)
    path.touch(0o600)
    path.write_text("".join(f"{line}\n" for line in lines))
    say(f"{len(lines)} keys are in {path}: tshark -r outer.pcap -o wg.keylog_file:{path}")
    return 0


def fault(arguments: argparse.Namespace) -> int:
    """Inject a fault, or end faults."""
    with standing.changing() as ladder:
        _fault(ladder, arguments.fault)
    return 0


def _fault(ladder: Ladder, words: list[str]) -> None:
    kind, *rest = words
    tap = ladder.backend.tap
    match kind, rest:
        case "stall" | "hold" | "drop" | "refuse" | "resume", []:
            getattr(tap, kind)()
        case "delay", [seconds]:
            tap.delay(float(seconds))
        case "flip", ["enclave" | "relay" as end]:
            tap.flip(to=end, offset=20)
        case "kill", [name]:
            if (process := ladder.backend.process(name)) is None:
                raise LabError(f"{name} is not running")
            process.kill()
        case "restart", [name]:
            _start(ladder, name)
        case "nsm", knobs:
            ladder.backend.nsm.set_faults(**dict(_knob(knob) for knob in knobs))
        case _:
            raise LabError(f"there is no fault {' '.join(words)!r}", fix="see python -m lab fault --help")


def _knob(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    return name, json.loads(value) if separator else True


FAULTS = """faults at the vsock point: stall, hold, drop, refuse, delay SECONDS, flip enclave|relay; resume ends them.
of the services: kill NAME, restart NAME; relay, enclave, external-server, ...
of the security module: nsm [debug] [wrong_root] [clock_offset=-600] ... (lab/nsm/faults.py); nsm alone ends them."""


def add_parsers(verbs: argparse._SubParsersAction[CommandParser]) -> None:
    """Add the verbs of this module."""
    for name, run, text in (
        ("prepare", fill_cache, "download and build what a laboratory needs"),
        ("up", up, "start a laboratory that stays up"),
    ):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument(
            "--backend", default=os.environ.get("LAB", ""), help="default: $LAB, otherwise the best available"
        )
        verb.set_defaults(run=run)
    verbs.add_parser("down", help="stop and remove it").set_defaults(run=down)
    for name, again, text in (
        ("start", False, "start what is not running"),
        ("restart", True, "end it and start it again"),
    ):
        verb = verbs.add_parser(name, help=f"{text}: relay, enclave, external-server, node-server")
        verb.add_argument("name", nargs="+")
        verb.set_defaults(run=start, again=again)
    verbs.add_parser("wait", help="wait until the tunnel is ready").set_defaults(run=wait)
    verb = verbs.add_parser("status", help="show its state")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(run=status)
    verb = verbs.add_parser("sh", help="a shell or a command in one of its machines")
    verb.add_argument("node", choices=[str(node) for node in Node])
    verb.add_argument("command", nargs=argparse.REMAINDER)
    verb.set_defaults(run=shell)
    verb = verbs.add_parser("logs", help="print a process's output")
    verb.add_argument("name", help="relay, enclave, tap, signer, external-server, …")
    verb.add_argument("-f", "--follow", action="store_true")
    verb.set_defaults(run=logs)
    verb = verbs.add_parser("capture", help="packets at a capture point, as pcap")
    verb.add_argument("point", choices=[str(point) for point in Point])
    verb.add_argument("-o", "--output", required=True, metavar="FILE")
    verb.set_defaults(run=capture)
    verb = verbs.add_parser("keylog", help="the tunnel's keys, for Wireshark and `wgvsock capture --outer`")
    verb.add_argument("-o", "--output", required=True, metavar="FILE")
    verb.set_defaults(run=key_log)
    verb = verbs.add_parser(
        "fault", help="break something", epilog=FAULTS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verb.add_argument("fault", nargs="+")
    verb.set_defaults(run=fault)
