"""Plays a schedule: injects faults, waits until all is well again, judges what was seen, and counts what is left."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from lab.backend import Process
from lab.deadline import Deadline
from lab.errors import LabError, LabTimeoutError
from lab.netns import namespaces
from lab.netns.build import namespace
from lab.schedule.census import FLAT, Census, count_process, growth, leaks, resident, without_volatile
from lab.schedule.faults import Target
from lab.schedule.load import Load
from lab.schedule.model import Account, Seen, complaints
from lab.schedule.plan import Step
from lab.schedule.site import OwnRoom, Room, Site
from lab.schedule.watch import Rules, Sighting, Watch
from lab.topology import Node
from wgvsock.relay.enclaves.reports import SILENCE

RIGHT_WITHIN: Final = 25.0
"""Seconds from the end of a fault until all is well: three seconds without a stream, an attestation, a start of the
service, and TCP's own back-off, which is as long again as the outage.
"""

_LOOK_PERIOD: Final = 0.05  # seconds
_GONE_WITHIN: Final = 20.0
"""Seconds in which the kernel forgets the connections of ended traffic (`lab.schedule.site`)."""

_TOOLS: Final = {"nft", "iptables", "ip6tables"}

_REPORTS_AGAIN: Final = SILENCE + 2.0
"""Seconds until the Relay reconnects to the reports of an agent that was killed and has returned as the same
enclave. Only the laboratory has such agents, and nothing tells the Relay.
"""

_LEFT: Final = 1
"""Entries of connection tracking that may come and go, such as a probe or a query, in addition to the Relay's own
connection to each enclave's reports.
"""


class Lookout:
    """Polls the Relay's status continuously, in a separate thread.

    Args:
        look: Polls once.
    """

    def __init__(self, look: Callable[[], tuple[Seen, ...]]) -> None:
        self._look = look
        self._seen: list[tuple[float, tuple[Seen, ...]]] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lookout", daemon=True)
        self._thread.start()

    def take(self, room: int, since: float) -> tuple[tuple[float, Seen], ...]:
        """Return what was reported about an enclave since a moment."""
        return tuple((when, seen[room]) for when, seen in list(self._seen) if when >= since)

    def forget(self) -> None:
        """Start over."""
        self._seen = []

    def close(self) -> None:
        """Stop."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(_LOOK_PERIOD):
            seen = self._look()
            self._seen.append((time.time(), seen))


@dataclass(slots=True)
class Outcome:
    """The outcome of a schedule.

    Attributes:
        complaints: What was not as required, with the number of the step, in order. 0: at the end.
        steps: Number of steps played.
        requests: Number of successful new connections.
    """

    complaints: list[tuple[int, str]] = field(default_factory=list)
    steps: int = 0
    requests: int = 0


class Player:
    """Plays a schedule on a site that has been started.

    Args:
        site: The laboratory.
        tell: Gets one line per fault.
    """

    def __init__(self, site: Site, tell: Callable[[str], None]) -> None:
        self._site = site
        self._backend = site.backend
        self._tell = tell
        self._marker = f"wgvsock-clear-{secrets.token_hex(8)}"
        self._memory: dict[str, list[tuple[int, int]]] = {}
        self._read_at_vsock = [0] * len(site.rooms)

    def play(self, steps: Sequence[Step]) -> Outcome:
        """Play all steps, up to the first that fails, and check what is left."""
        outcome = Outcome()
        with self._traffic() as (load, lookout, watch):
            self._settle(load, time.time())
            for room in self._site.rooms:
                load.take(room.number)
            for step in steps:
                found = self._one(step, load, lookout, watch)
                outcome.steps += 1
                outcome.complaints += [(step.number, text) for text in found]
                if found:
                    break
            outcome.requests = load.succeeded()
        if not outcome.complaints:
            if steps and any(row.target is Target.AGENT for row in steps[-1].traits):
                time.sleep(_REPORTS_AGAIN)
            outcome.complaints += [(0, text) for text in self._conclude()]
        return outcome

    @contextlib.contextmanager
    def _traffic(self) -> Iterator[tuple[Load, Lookout, Watch]]:
        topology = self._site.ladder.topology
        load = Load(self._backend, self._marker)
        lookout = Lookout(self._site.look)
        machines = {str(node): namespace(self._backend.prefix, node) for node in (Node.POD, Node.NODE, Node.EXTERNAL)}
        tunnels = {f"{Node.POD}.{room.interface}": room.networks for room in self._site.rooms}
        watch = Watch(machines, Rules(tunnels))
        world, pod = (topology.external4, topology.external6), (topology.pod4, topology.pod6)
        outside = topology.service(Node.EXTERNAL)
        try:
            for room in self._site.rooms:
                load.start(Node.EXTERNAL, room, "published", hosts=pod, service=room.service)
            for own in self._site.own_rooms:
                load.start(own.node, own, "egress", hosts=world, service=outside)
            yield load, lookout, watch
        finally:
            load.stop()
            lookout.close()
            watch.close()

    # -- one step ------------------------------------------------------------------------------------------------------

    def _one(self, step: Step, load: Load, lookout: Lookout, watch: Watch) -> list[str]:
        struck_room = self._site.rooms[step.enclave]
        lookout.forget()
        before = self._site.look()[step.enclave]
        struck = time.time()
        found = self._strike(step, struck_room)
        mended = time.time()
        patience = RIGHT_WITHIN + max(row.takes for row in step.traits)
        right = None if found else self._settle(load, mended, patience)
        sightings = watch.take()
        accounts = []
        for room in self._site.rooms:
            cuts, failed = load.take(room.number)
            account = Account(
                struck=struck,
                mended=mended,
                right=right,
                looks=lookout.take(room.number, struck),
                cut=frozenset(cut.flow for cut in cuts),
                failed=tuple(failed),
                bare=tuple(one.time for one in sightings if one.network in room.networks),
            )
            accounts.append(account)
            wrong = complaints(step.traits_for(room.number), account)
            if any(text.startswith("cut") for text in wrong):
                wrong += [cut.what for cut in cuts]
            found += [text if room is struck_room else f"neighbour: {text}" for text in wrong]
            if isinstance(room, OwnRoom) and self._is_readable_at_vsock(room):
                found.append("the traffic can be read at the vsock point")
        if right is None:
            found += [f"behind: {late}" for late in load.behind(mended)]
        found += [f"seen: {sighting}" for sighting in _few(sightings)] if found else []
        self._sample()
        self._tell(_line(step, before, accounts[step.enclave], found))
        return found

    def _strike(self, step: Step, room: Room) -> list[str]:
        """Inject the fault, and end it. Return why that failed."""
        try:
            self._site.strike(step.fault, room)
            if step.traits[0].lasts:
                end = time.monotonic() + step.traits[0].seconds
                if step.beside is not None:
                    self._site.strike(step.beside, room)
                time.sleep(max(0.0, end - time.monotonic()))
                self._site.mend(step.fault, room)
        except LabError as error:
            return [f"{error.what}: {error.why}"]
        return []

    def _settle(self, load: Load, since: float, patience: float = RIGHT_WITHIN) -> float | None:
        """Return when all was well: the Relay as required, and traffic after that moment. None: never."""
        with contextlib.suppress(LabTimeoutError):
            deadline = Deadline(patience, scale=self._backend.scale)
            deadline.poll(self._site.is_as_wanted, "the Relay to be ready")
            since = max(since, time.time())  # what ends then, such as a drained enclave, may take connections along
            deadline.poll(lambda: not load.behind(since), "the traffic to go on")
            right = time.time()
            if self._site.is_as_wanted():
                # Connections opened meanwhile have an outcome by then, so that each step answers for its own.
                deadline.poll(lambda: not load.pending(right), "the connections of that time to end")
                return right
        return None

    def _is_readable_at_vsock(self, room: OwnRoom) -> bool:
        """Return whether the marker is in what has crossed the vsock point since the last check."""
        with room.tap.recording.open("rb") as stream:
            stream.seek(self._read_at_vsock[room.number])
            data = stream.read()
        self._read_at_vsock[room.number] += max(0, len(data) - len(self._marker))
        return self._marker.encode() in data

    # -- the end -------------------------------------------------------------------------------------------------------

    def _services(self) -> dict[str, Process]:
        found = {str(room.node): self._site.agent(room) for room in self._site.own_rooms}
        return found if self._site.ladder.relay is None else {"relay": self._site.ladder.relay, **found}

    def _sample(self) -> None:
        for name, process in self._services().items():
            self._memory.setdefault(name, []).append((process.pid, resident(process.pid)))

    def _conclude(self) -> list[str]:
        """Compare what is left with a fresh Relay and fresh enclaves of the current configuration."""
        found = []
        for name, samples in self._memory.items():
            grown = growth(samples)
            if grown is not None:
                self._tell(f"memory of the {name}: {grown:+.1%} from the first third to the last")
                found += [f"the {name} has grown by {grown:.1%}"] if grown > FLAT else []
        self._site.bring_home()
        flows = self._tracked()
        used = self._census()
        self._site.ladder.clear()
        self._site.restart()
        fresh = self._census()
        found += [f"leak: {text}" for text in leaks(fresh, used)]
        found += [f"leak: tracked connection: {flow}" for flow in flows] if len(flows) > self._kept_flows else []
        return found

    @property
    def _kept_flows(self) -> int:
        return _LEFT + len(self._site.rooms)

    def _tracked(self) -> list[str]:
        """Return the tracked connections in the pod, once those of ended traffic can be forgotten."""
        pod = namespace(self._backend.prefix, Node.POD)
        with contextlib.suppress(LabTimeoutError):
            self._backend.deadline(_GONE_WITHIN).poll(
                lambda: len(namespaces.tracked_connections(pod)) <= self._kept_flows, "connections to be forgotten"
            )
        return namespaces.tracked_connections(pod)

    def _census(self) -> Census:
        """Count while nothing happens: until two counts agree, because a tool that is starting has another name."""
        deadline = self._backend.deadline(10)
        before = self._count()
        while True:
            census = self._count()
            seen = census.processes["relay"].children.keys() | census.commands[Node.POD].keys()
            if deadline.expired or (not leaks(before, census) and not _TOOLS & seen):
                return census
            before = census

    def _count(self) -> Census:
        ladder = self._site.ladder
        nodes = (Node.POD, *(room.node for room in self._site.own_rooms))
        processes = {
            name: count_process(process, self._backend.tasks_of(name), self._backend.deadline(5))
            for name, process in self._services().items()
        }
        state = {f"{node}/{key}": without_volatile(text) for node in nodes for key, text in ladder.state(node).items()}
        state["pod/iptables"] = without_volatile(self._site.in_pod("iptables-save 2>/dev/null || true"))
        files = {}
        commands = {}
        for node in nodes:
            listing = self._backend.run(node, ["ls", "-A", "/run/wgvsock"]).stdout
            files[str(node)] = sorted(listing.decode().split())
            commands[str(node)] = _commands(self._backend.processes_in(node))
        return Census(processes, state, files, commands)


def _commands(pids: Sequence[int]) -> dict[str, int]:
    names: Counter[str] = Counter()
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended since
            names[Path(f"/proc/{pid}/comm").read_text().strip()] += 1
    return dict(names)


def _few(sightings: Sequence[Sighting]) -> Sequence[Sighting]:
    return sightings[:5]


def _line(step: Step, before: Seen, account: Account, found: Sequence[str]) -> str:
    after = account.looks[-1][1] if account.looks else before
    seen = list(dict.fromkeys(str(look) for _, look in account.looks))
    unready = [when for when, look in account.looks if not look.ready]
    ready = f"unready for {max(0.0, unready[-1] - account.struck):.2f} s, " if unready else ""
    right = "never well again" if account.right is None else f"well after {account.right - account.mended:.2f} s"
    notes = []
    if account.cut:
        notes.append("cut: " + ", ".join(sorted(account.cut)))
    if account.failed:
        notes.append(f"refused: {len(account.failed)}")
    between = " ".join(text for text in seen if text != "ready")
    where = f" [{step.enclave + 1}]" if step.enclave and any(traits.alone for traits in step.traits) else ""
    head = f"{step.number:3d}  {f'{step}{where}':<52}  {before} -> {between + ' -> ' if between else ''}{after}"
    tail = ready + right + "".join(f"; {note}" for note in notes)
    return "\n".join([f"{head}  ({tail})", *(f"     FAILED {text}" for text in found)])
