"""The permanent laboratory: started twice, inspected, broken, repaired by Ansible, taken down without a trace."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import uplinks
from lab.backends import backend_class
from lab.cli.play import unavailable as ansible_unavailable
from lab.deadline import patiently
from lab.guest.packets import PcapReader

BACKEND = os.environ.get("LAB", "netns")
CHECKOUT = Path(__file__).parents[2]
CAPTURED = "relay.eth0" if uplinks.asked_for() == "userspace" else "relay.wg0"


class Lab:
    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        # The packages' cache is the machine's: what is tested is what `up` leaves elsewhere.
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        variables = {"HOME": str(self.home), "XDG_STATE_HOME": str(folder / "state"), "XDG_CACHE_HOME": cache}
        self.environment = {**os.environ, **variables}

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lab", *words]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=CHECKOUT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
        )

    def up(self) -> int:
        """Check it again, and return how many tasks changed something."""
        done = self("up", "--backend", BACKEND)
        assert done.returncode == 0, done.stderr
        assert "python -m lab sh enclave" in done.stderr
        found = re.search(r"Ansible: \d+ tasks, (\d+) changed something", done.stderr)
        assert found, done.stderr
        return int(found[1])

    def status(self) -> dict[str, Any]:
        done = self("status", "--json")
        assert done.stdout, done.stderr
        status: dict[str, Any] = json.loads(done.stdout)
        return status


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if reason := backend_class(BACKEND).unavailable():
        pytest.skip(f"the {BACKEND} backend cannot run here: {reason}")
    if lacks := ansible_unavailable():
        pytest.skip(f"Ansible cannot run here: {lacks}")
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try:
        assert lab.up() > 0
        yield lab
    finally:
        lab("down")


def test_a_second_pass_changes_nothing(lab: Lab) -> None:
    before = lab.status()
    assert before["ready"]
    assert lab.up() == 0
    assert lab.status()["directory"] == before["directory"]


def test_ansible_writes_nothing_into_the_home(lab: Lab) -> None:
    assert not (lab.home / ".ansible").exists()


def test_commands_run_in_its_machines(lab: Lab) -> None:
    done = lab("sh", "pod", "--", "sh", "-c", "cat /etc/wgvsock/relay.toml; echo apart >&2; exit 7")
    assert (done.returncode, "apart" in done.stderr) == (7, True)
    assert "[[attestation.pcr_sets]]" in done.stdout


def test_logs_are_shown(lab: Lab) -> None:
    assert "the enclave is attested" in lab("logs", "relay").stdout
    assert lab("logs", "nobody").returncode == 1


@pytest.mark.parametrize("time_", ["first", "second"])  # of one point: each has what passes in its own time
def test_a_capture_is_written_until_it_is_interrupted(lab: Lab, tmp_path: Path, time_: str) -> None:
    path = tmp_path / f"{time_}.pcap"
    command = [sys.executable, "-m", "lab", "capture", CAPTURED, "-o", str(path)]
    with subprocess.Popen(command, cwd=CHECKOUT, env=lab.environment, stderr=subprocess.PIPE, text=True) as capture:
        assert capture.stderr is not None
        try:
            assert "capturing" in capture.stderr.readline()
            lab("sh", "enclave", "ping", "-c", "2", "198.51.100.10")
            patiently(30).poll(lambda: path.stat().st_size > 24, "packets in the file")
        finally:
            capture.send_signal(signal.SIGINT)
        assert capture.wait(30) == 0
    with path.open("rb") as stream:
        assert any(record for _, record in PcapReader(stream).records())


def test_the_keys_are_written_for_wireshark(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "keys.log"
    assert lab("keylog", "-o", str(path)).returncode == 0
    assert path.stat().st_mode & 0o077 == 0
    assert "LOCAL_EPHEMERAL_PRIVATE_KEY = " in path.read_text()


def test_what_is_broken_is_mended(lab: Lab) -> None:
    assert lab("fault", "kill", "relay").returncode == 0
    assert lab("status").returncode == 4
    assert lab.up() > 0
    assert lab("status").returncode == 0
    assert lab.up() == 0


def test_faults_come_and_go(lab: Lab) -> None:
    assert lab("fault", "stall").returncode == 0
    assert lab.status()["vsock"]["faults"]
    assert lab("fault", "resume").returncode == 0
    assert not lab.status()["vsock"]["faults"]
    assert lab("fault", "nonsense").returncode == 1


def test_a_failed_step_stops_the_rest_and_keeps_the_traces(lab: Lab) -> None:
    kept = CHECKOUT / "artifacts/lab-up/logs/relay.log"
    begin = time.time()
    lab("fault", "nsm", "wrong_root")
    lab("fault", "restart", "relay")
    done = lab("up")
    assert done.returncode != 0
    assert "'The tunnel comes up' failed on pod" in done.stderr
    assert "the Relay refuses the Enclave" in done.stderr
    assert "A request each way" not in done.stderr
    assert kept.stat().st_mtime >= begin - 1
    lab("fault", "nsm")
    lab("fault", "restart", "relay")
    lab.up()


def test_a_relay_that_cannot_start_fails_the_run_with_its_last_words(lab: Lab) -> None:
    lab("fault", "kill", "relay")
    assert lab("sh", "pod", "ip", "link", "add", "wg0", "type", "veth", "peer", "name", "in-its-way").returncode == 0
    done = lab("up")
    assert done.returncode != 0
    assert "WGV-E071" in done.stderr, done.stderr
    lab("sh", "pod", "ip", "link", "delete", "wg0")
    assert lab.up() > 0


def traces(lab: Lab, directory: str) -> list[str]:
    """Return processes, mounts, sockets and namespaces of a laboratory, found in the kernel's own lists."""
    found = [f"file {directory}"] if Path(directory).exists() else []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if directory in (words := path.read_bytes().replace(b"\0", b" ").decode(errors="replace")):
                found.append(f"process {words}")
        except OSError:
            continue
    found += [
        line
        for name in ("mounts", "net/unix")
        for line in Path(f"/proc/self/{name}").read_text().splitlines()
        if directory in line
    ]
    prefix = Path(directory).name.rpartition("-")[0]
    return found + [str(path) for path in Path("/run/netns").glob(f"{prefix}-*")]


def test_nothing_is_left_of_it(lab: Lab) -> None:
    directory = lab.status()["directory"]
    assert traces(lab, directory)
    done = lab("down")
    assert (done.returncode, "nothing is left of it" in done.stderr) == (0, True)
    assert traces(lab, directory) == []
    assert lab("status").returncode == 3
    assert lab("down").returncode == 0
