from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.deadline import Deadline
from lab.image.eif import measure, unpack
from lab.nitro import failures
from lab.nitro.enclaves import FIRST_CID, Limits, Request
from lab.nitro.failures import NitroFailure
from lab.nitro.local import LocalParent, environment, write_image
from lab.process import LocalProcess


class Sleeper:
    """Instead of the agent: a process that does nothing."""

    started: list[list[str]]

    def __call__(self, name: str, argv: list[str], *, log: Path, **options: Any) -> LocalProcess:
        if "lab.nsm.server" in argv:
            return self._start(name, argv, log=log, **options)
        self.started.append(list(argv))
        self.processes.append(self._start(name, ["sleep", "600"], log=log, **options))
        return self.processes[-1]

    def __init__(self) -> None:
        self.started = []
        self.processes: list[LocalProcess] = []  # the tool's process would have ended: here they stay our children
        self._start = LocalProcess.start


@pytest.fixture
def sleeper(monkeypatch: pytest.MonkeyPatch) -> Sleeper:
    sleeper = Sleeper()
    monkeypatch.setattr(LocalProcess, "start", sleeper)
    return sleeper


@pytest.fixture
def parent(tmp_path: Path, sleeper: Sleeper) -> Iterator[LocalParent]:
    parent = LocalParent(tmp_path / "s", Limits(memory_mib=1024, cpu_count=4))
    yield parent
    parent.close()
    for process in sleeper.processes:
        process.kill()
    assert not (tmp_path / "s").exists()


def request(image: Path, name: str = "app", memory: int = 400) -> Request:
    return Request(image, memory, 1, None, name, debug=False)


def test_other_contents_are_another_image(tmp_path: Path) -> None:
    path = tmp_path / "a.eif"
    one = measure(write_image(path, ["serve"], name="one"))
    assert measure(unpack(path.read_bytes())) == one
    assert measure(write_image(path, ["serve"], name="two"))[2] != one[2]
    assert measure(write_image(path, ["serve", "more"], name="one"))[0] != one[0]


def test_several_enclaves_are_launched_found_again_and_ended(
    tmp_path: Path, parent: LocalParent, sleeper: Sleeper
) -> None:
    image = tmp_path / "a.eif"
    write_image(image, ["serve", "--here"], name="one")
    first, second = parent.run(request(image)), parent.run(request(image, "app-2"))
    assert (first["EnclaveCID"], second["EnclaveCID"]) == (FIRST_CID, FIRST_CID + 1)
    assert first["EnclaveID"] != second["EnclaveID"]
    assert sleeper.started[0][-2:] == ["serve", "--here"]
    config = (tmp_path / "s/app/enclave.toml").read_text()
    assert f"unix:{parent.vsock}/{FIRST_CID}/51820" in config

    again = LocalParent(tmp_path / "s", Limits(memory_mib=1024, cpu_count=4))
    assert [one["EnclaveName"] for one in again.describe()] == ["app", "app-2"]
    again.terminate(name="app")
    assert [one["EnclaveName"] for one in parent.describe()] == ["app-2"]
    assert not (parent.vsock / str(FIRST_CID)).exists()
    assert (parent.vsock / str(FIRST_CID + 1)).exists()


def test_its_module_signs_what_the_image_measures(tmp_path: Path, parent: LocalParent) -> None:
    image = tmp_path / "a.eif"
    measured = measure(write_image(image, ["serve"], name="one"))
    launched = parent.run(request(image))
    described = parent.signer_control().describe(launched["EnclaveID"])
    assert {number: described.measurements[number] for number in (0, 1, 2)} == {n: measured[n] for n in (0, 1, 2)}
    assert described.module_id.startswith("i-")


def test_an_enclave_that_ends_by_itself_is_gone(tmp_path: Path, parent: LocalParent) -> None:
    image = tmp_path / "a.eif"
    write_image(image, ["serve"], name="one")
    parent.run(request(image))
    state = json.loads((tmp_path / "s/app/state.json").read_text())
    LocalProcess.adopt(state["machine"]).kill()
    Deadline(10).poll(lambda: parent.describe() == [], "the enclave to be gone")


def test_there_is_room_for_so_many(tmp_path: Path, parent: LocalParent) -> None:
    image = tmp_path / "a.eif"
    write_image(image, ["serve"], name="one")
    parent.run(request(image, memory=700))
    with pytest.raises(NitroFailure) as caught:
        parent.run(request(image, "app-2", memory=700))
    assert caught.value.numbers[0] == failures.INSUFFICIENT_MEMORY_AVAILABLE


def test_what_makes_the_tool_a_local_parent_s() -> None:
    settings = environment(Path("/state"))
    assert settings["NITRO_CLI_SOCKETS_PATH"] == "/state"
    assert settings["WGVSOCK_LAB_ENCLAVE_KIND"] == "namespace"
