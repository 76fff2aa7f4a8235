"""The laboratory of the behaviour suite, and how far a test finds it raised.

One laboratory serves the whole session. `network` is machines, cables, servers, signer and tap; `tunnel` has the Relay
and the Enclave up in it, for tests that only send traffic; a test that starts, stops or reconfigures the services takes
`own_lab`, in which none runs. Whatever fails leaves logs, configurations and captures in artifacts/.

A test that needs no laboratory would say the same on every backend: it is run with the first, `netns`, alone.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.backends import backend_class
from lab.ladder import Ladder
from lab.process import LocalProcess
from lab.raising import why_not_here

ARTIFACTS = Path("artifacts/e2e")
BACKEND = os.environ.get("LAB", "netns")

LABORATORIES = {"network", "lab"}
"""The fixtures that raise the chosen backend."""

NESTED = ("test_nested.py", "test_egress_lifecycle.py", "test_ingress_lifecycle.py")
"""All that is run where a guest is in an emulated guest, in this order: the first shows what each step takes."""

_labs: list[Ladder] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if BACKEND == "netns":
        return
    here = Path(__file__).parent
    idle = [item for item in items if item.path.is_relative_to(here) and not _has_a_place(item)]
    items[:] = [item for item in items if item not in idle]
    if BACKEND == "nested":
        items.sort(key=lambda item: NESTED.index(item.path.name) if item.path.name in NESTED else len(NESTED))
    config.hook.pytest_deselected(items=idle)


def _has_a_place(item: pytest.Item) -> bool:
    """Whether a test says more on the chosen backend than on `netns`."""
    if BACKEND == "nested":
        return item.path.name in NESTED
    return not LABORATORIES.isdisjoint(getattr(item, "fixturenames", ()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if report.failed:
        folder = ARTIFACTS / re.sub(r"[^\w.-]+", "-", item.nodeid.removeprefix("tests/e2e/")).strip("-")
        for number, ladder in enumerate(_labs):
            ladder.backend.keep_artifacts(folder / f"lab-{number}")
        report.sections.append(("artifacts", f"kept in {folder}"))
    return report


@pytest.fixture(scope="session", autouse=True)
def _root_namespace_untouched() -> Iterator[None]:
    """This machine's own network is none of the laboratory's business."""

    def ours() -> list[str]:
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=False).stdout
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout
        return [line for line in (links + tables).splitlines() if "wgvsock" in line or "pod0" in line]

    before = ours()
    yield
    assert ours() == before


@pytest.fixture(scope="session", autouse=True)
def _nothing_outlives_the_suite() -> Iterator[None]:
    """However the suite ends: one that is terminated takes all away as an interrupted one does, a killed one leaves no
    guest behind."""
    LocalProcess.dies_with_starter = True
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)
    LocalProcess.dies_with_starter = False


@pytest.fixture(scope="session")
def network() -> Iterator[Ladder]:
    """Machines, cables, servers, signer and tap, with the proof that nothing is left of them in the end."""
    chosen = backend_class(BACKEND)
    if reason := why_not_here(chosen):
        pytest.skip(f"the {BACKEND} backend cannot run here: {reason}")
    ladder = Ladder(chosen(f"{os.getpid():x}"))
    _labs.append(ladder)
    try:
        ladder.backend.up()
        yield ladder
    finally:
        _labs.remove(ladder)
        ladder.backend.down()
    assert ladder.backend.leftovers() == []


@pytest.fixture(scope="module")
def tunnel(network: Ladder) -> Ladder:
    """Attested, provisioned, with a session and rules: the Relay says that it is ready, and the application answers."""
    network.raise_tunnel()
    return network


@pytest.fixture
def own_lab(network: Ladder) -> Iterator[Ladder]:
    """Nothing runs in the laboratory; what the test starts is stopped behind it."""
    network.clear()
    yield network
    network.clear()
