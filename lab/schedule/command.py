"""``python -m lab schedule``: one schedule in a new laboratory, one line per fault, and how to play it again."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from lab import uplinks
from lab.backends import choose
from lab.errors import LabError
from lab.ladder import Ladder
from lab.netns.backend import NetnsBackend
from lab.schedule.faults import TABLES
from lab.schedule.launched import Launched
from lab.schedule.plan import plan
from lab.schedule.run import Outcome, Player
from lab.schedule.site import Site
from lab.topology import TOPOLOGY, TWO_ENCLAVES

ARTIFACTS: Final = Path("artifacts/schedule")


def run(seed: int, faults: int, enclaves: int) -> int:
    """Play the schedule of a seed on one enclave or two. The exit status is 1 if something was not as required.

    Raises:
        LabError: The laboratory could not be started.
    """
    choose(NetnsBackend.name)
    backend = NetnsBackend(f"{os.getpid():x}s", topology=TWO_ENCLAVES if enclaves == 2 else TOPOLOGY)
    ladder = Ladder(backend)
    print(f"schedule of seed {seed}: {faults} faults, {len(backend.topology.tenants)} enclaves", flush=True)
    try:
        backend.up()
        outcome = play(ladder, seed, faults)
        if outcome.complaints:
            backend.keep_artifacts(ARTIFACTS)
            print(f"logs and captures are kept in {ARTIFACTS}", flush=True)
        ladder.stop()
    finally:
        backend.down()
    if left := backend.leftovers():
        raise LabError("the laboratory left something behind", why="; ".join(left))
    return 1 if outcome.complaints else 0


def play(ladder: Ladder, seed: int, faults: int) -> Outcome:
    """Play the schedule of a seed in a laboratory in which nothing runs, and report it."""
    enclaves = len(ladder.topology.tenants)
    with Launched.raised() if enclaves > 1 else contextlib.nullcontext() as launched:
        site = Site(ladder, launched)
        site.start()
        table = TABLES[uplinks.asked_for()]
        steps = plan(seed, faults, enclaves=enclaves, launched=launched is not None, table=table)
        try:
            outcome = Player(site, lambda line: print(line, flush=True)).play(steps)
        finally:
            site.close()
    for line in summary(seed, faults, outcome, enclaves=enclaves):
        print(line, flush=True)
    return outcome


def summary(seed: int, faults: int, outcome: Outcome, *, enclaves: int) -> list[str]:
    """Print the last lines: how it ended, and how to play it again."""
    lines = [f"{outcome.steps} of {faults} faults, {outcome.requests} new connections went well"]
    for number, text in outcome.complaints:
        lines.append(f"FAILED {f'at fault {number}' if number else 'at the end'}: {text}")
    if outcome.complaints:
        step = max(number for number, _ in outcome.complaints) or faults
        uplink = f"UPLINK={mode} " if (mode := uplinks.asked_for()) else ""
        lines.append(f"again: {uplink}python -m lab schedule --seed {seed} --faults {step} --enclaves {enclaves}")
    else:
        lines.append("all as required, nothing is left behind")
    return lines
