"""The ladder: network -> Relay started -> Enclave started -> provisioned -> tunnel up; each rung a fixture.

One laboratory serves the whole session for tests that only send traffic; a module whose tests kill, stop or reconfigure
the services takes `own_lab` and has one to itself. Whatever fails leaves logs, configurations and captures in
artifacts/.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.backends import backend_class
from lab.ladder import Ladder
from lab.topology import Node

ARTIFACTS = Path("artifacts/e2e")
BACKEND = os.environ.get("LAB", "netns")

_labs: list[Ladder] = []


def raise_network(identity: str) -> Iterator[Ladder]:
    """A laboratory from `up` to `down`, with the proof that nothing is left of it."""
    chosen = backend_class(BACKEND)
    if reason := chosen.unavailable():
        pytest.skip(f"the {BACKEND} backend cannot run here: {reason}")
    ladder = Ladder(chosen(f"{os.getpid():x}{identity}"))
    _labs.append(ladder)
    try:
        ladder.backend.up()
        yield ladder
    finally:
        _labs.remove(ladder)
        ladder.backend.down()
    assert ladder.backend.leftovers() == []


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


@pytest.fixture(scope="session")
def network() -> Iterator[Ladder]:
    """Machines, cables, servers, signer and tap."""
    yield from raise_network("")


@pytest.fixture(scope="session")
def relay_started(network: Ladder) -> Ladder:
    """The Relay runs, and waits for an enclave that is not there yet."""
    network.start_relay()
    network.backend.deadline(20).poll(lambda: network.backend.status(Node.POD), "the Relay to answer")
    return network


@pytest.fixture(scope="session")
def enclave_started(relay_started: Ladder) -> Ladder:
    """The Enclave runs."""
    relay_started.start_enclave()
    return relay_started


@pytest.fixture(scope="session")
def tunnel(enclave_started: Ladder) -> Ladder:
    """Attested, provisioned, with a session and rules: the Relay says that it is ready, and the application answers."""
    enclave_started.wait_ready()
    enclave_started.wait_application()
    return enclave_started


@pytest.fixture(scope="module")
def own_network(request: pytest.FixtureRequest) -> Iterator[Ladder]:
    """A laboratory of this module's own, with nothing started in it."""
    yield from raise_network(f"{len(_labs)}")


@pytest.fixture
def own_lab(own_network: Ladder) -> Iterator[Ladder]:
    """The module's laboratory for one test, nothing started in it; what the test starts is stopped behind it."""
    own_network.clear()
    yield own_network
    own_network.clear()
