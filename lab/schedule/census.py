"""The amounts of everything that can leak, compared between a Relay after a schedule and a fresh one."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from lab.backend import Process
from lab.deadline import Deadline
from lab.programs.counted import COUNT

FLAT: Final = 0.05
"""How much memory may grow between the first third of a schedule and its end."""

FEWEST: Final = 4
"""Samples of a third. With fewer, the median is chance."""

WARM_UP: Final = 3
"""Memory samples of each process that are ignored, because the first ones include imports and caches."""

MOST_THREADS: Final = 1 + min(32, (os.cpu_count() or 1) + 4)
"""Threads of a process: its own, and the pool for blocking calls, which grows with use (concurrent.futures)."""

_VOLATILE: Final = re.compile(
    r"^.*\bfe80::.*$"  # an interface's own addresses: new with each, and nothing misses flushed ones
    r'|^.* comment "before published .*$'  # which ports have led to an enclave: the latest 1024 are remembered
    r"|\[\d+:\d+\]|packets \d+ bytes \d+|# (?:Generated|Completed).*"  # the counts of rules, and times
    r"|^\d+: "  # an interface's number
)


@dataclass(frozen=True, slots=True)
class ProcessCensus:
    """One process.

    Attributes:
        descriptors: Open ones, by kind.
        tasks: Tasks of its event loop, by coroutine.
        threads: Their number.
        children: Its running child processes, by command.
        memory: Resident memory, KiB.
    """

    descriptors: Mapping[str, int] = field(default_factory=dict)
    tasks: Mapping[str, int] = field(default_factory=dict)
    threads: int = 0
    children: Mapping[str, int] = field(default_factory=dict)
    memory: int = 0


def count_process(process: Process, tasks: Path, deadline: Deadline) -> ProcessCensus:
    """Count the resources of a process that `lab.programs.counted` started and that runs on this machine.

    Raises:
        LabTimeoutError: It does not answer.
    """
    tasks.unlink(missing_ok=True)
    os.kill(process.pid, COUNT)
    deadline.poll(tasks.exists, f"{process.name} to count its tasks")
    return ProcessCensus(
        descriptors=_descriptors(process.pid),
        tasks=json.loads(tasks.read_text()),
        threads=len(list(Path(f"/proc/{process.pid}/task").iterdir())),
        children=_children(process.pid),
        memory=resident(process.pid),
    )


def _descriptors(pid: int) -> dict[str, int]:
    kinds: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the directory's own, or one that was closed meanwhile
            kinds[re.sub(r":?\[\d+\]", "", str(entry.readlink()))] += 1
    return dict(kinds)


def _children(pid: int) -> dict[str, int]:
    names: Counter[str] = Counter()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread or the child has ended since
            for child in path.read_text().split():
                names[Path(f"/proc/{child}/comm").read_text().strip()] += 1
    return dict(names)


def resident(pid: int) -> int:
    """Return the resident memory of a process in KiB (proc_pid_status(5)), or 0 if it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^VmRSS:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) if found else 0


@dataclass(frozen=True, slots=True)
class Census:
    """The census of everything.

    Attributes:
        processes: By name.
        state: State of the machines, in words: links, addresses, routes, rules, sysctls (`lab.ladder.Ladder.state`).
        files: Files in the machines' runtime directories.
        commands: Processes in each machine, by command.
    """

    processes: Mapping[str, ProcessCensus]
    state: Mapping[str, str]
    files: Mapping[str, Sequence[str]]
    commands: Mapping[str, Mapping[str, int]]


def without_volatile(listing: str) -> str:
    """Return the output of ip, nft and iptables without counters, times, numbers, link-local addresses, old ports."""
    lines = (_VOLATILE.sub("", line).rstrip() for line in listing.splitlines())
    return "\n".join(line for line in lines if line.strip())


def leaks(fresh: Census, used: Census) -> list[str]:
    """Describe the differences between a used census and a fresh one. Memory is not included."""
    return list(_differences("", _comparable(fresh), _comparable(used)))


def _comparable(census: Census) -> dict[str, Any]:
    found = asdict(census)
    for process in found["processes"].values():
        del process["memory"]
        process["threads"] = max(0, process["threads"] - MOST_THREADS)
    return found


def _differences(where: str, fresh: Any, used: Any) -> Iterable[str]:
    if fresh == used:
        return
    if isinstance(fresh, Mapping) and isinstance(used, Mapping):
        for key in sorted({*fresh, *used}):
            yield from _differences(f"{where}/{key}", fresh.get(key), used.get(key))
    elif isinstance(fresh, str) and isinstance(used, str) and "\n" in fresh + used:
        ours, theirs = Counter(fresh.splitlines()), Counter(used.splitlines())
        yield from (f"{where}: more: {line.strip()}" for line in theirs - ours)
        yield from (f"{where}: less: {line.strip()}" for line in ours - theirs)
    else:
        yield f"{where}: {used!r}, fresh {fresh!r}"


def growth(samples: Sequence[tuple[int, int]]) -> float | None:
    """Return the growth of memory between the first third of a schedule and its last. None: too few samples.

    Medians are compared, because a sample during a burst of packets is larger than its neighbours.

    Args:
        samples: Process ID and KiB, in order. A restarted service warms up again.
    """
    seen: Counter[int] = Counter()
    counted = []
    for pid, memory in samples:
        seen[pid] += 1
        if seen[pid] > WARM_UP:
            counted.append(memory)
    third = len(counted) // 3
    if third < FEWEST:
        return None
    first = median(counted[:third])
    return median(counted[-third:]) / first - 1
