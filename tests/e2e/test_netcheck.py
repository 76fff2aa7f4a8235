"""For every fault `wgvsock netcheck` or `wgvsock status` names it in one line, and in its exit status."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from scapy.contrib.wireguard import Wireguard
from scapy.layers.inet import IP, TCP, UDP
from scapy.utils import RawPcapReader

from lab.backend import Completed
from lab.ladder import Ladder
from lab.programs.enclave import CLOCK_AHEAD
from lab.qemu.backends import GuestBackend
from lab.topology import Node

pytestmark = pytest.mark.lab

WGVSOCK: Final = str(Path(sys.executable).with_name("wgvsock"))
SOCKET: Final = ("--socket", "/run/wgvsock/relay.sock")
HUNG: Final = "/run/wgvsock/hung"
NO_DNS: Final = """
table inet silence {
    chain input {
        type filter hook input priority 0
        udp dport 53 drop
        tcp dport 53 drop
    }
}
"""
ROUTES: Final = "ip route replace default via 10.20.0.1 dev eth0; ip -6 route replace default via fd20::1 dev eth0"
UP: Final = f"ip link set eth0 up; ip -6 address replace fd20::10/64 dev eth0 nodad; {ROUTES}"


@pytest.fixture(scope="module")
def house(network: Ladder) -> Iterator[Ladder]:
    """A tunnel whose application reports in a file whether it hangs."""
    network.clear()
    enclave = network.backend.enclave_config()
    ready = {"ready": f"exec:test ! -e {HUNG}", "ready_interval": 0.2}
    network.start_enclave({**enclave, "application": ready})
    network.start_relay(network.backend.relay_config())
    network.wait_ready()
    network.wait_application()
    yield network
    network.clear()


def wgvsock(lab: Ladder, *arguments: str) -> Completed:
    return lab.backend.run(Node.POD, [WGVSOCK, *arguments], deadline=lab.backend.deadline(30))


def netcheck(lab: Ladder) -> tuple[int, dict[str, dict[str, Any]]]:
    done = wgvsock(lab, "netcheck", *SOCKET, "--world", f"{lab.topology.external4}:7", "--json")
    answer = json.loads(done.stdout)
    return done.exit_code, {layer["layer"]: layer for layer in answer["layers"]}


def at_node(lab: Ladder, node: Node, script: str) -> None:
    lab.backend.run(node, ["sh", "-ec", script]).check()


@contextmanager
def fault(lab: Ladder, node: Node, broken: str, mended: str) -> Iterator[None]:
    at_node(lab, node, broken)
    try:
        yield
    finally:
        at_node(lab, node, mended)
        lab.wait_ready()


def wait_for(lab: Ladder, layer: str, state: str) -> dict[str, Any]:
    """Wait until the layer is in this state, and return it."""

    def look() -> dict[str, Any] | None:
        _, layers = netcheck(lab)
        return layers[layer] if layer in layers and layers[layer]["state"] == state else None

    return lab.backend.deadline(30).poll(look, f"{layer} to be {state}")


def status_lines(lab: Ladder) -> list[str]:
    return wgvsock(lab, "status", *SOCKET).stdout.decode().splitlines()


def test_all_is_well(house: Ladder) -> None:
    code, layers = netcheck(house)
    # The lab's attestation root is not AWS's, of which a warning tells.
    assert code == 4
    assert {name: layer["state"] for name, layer in layers.items()} == {
        "attestation": "warning", "stream": "ok", "handshake": "ok", "path": "ok", "way out": "ok", "names": "ok",
        "world": "ok", "application": "ok", "clock": "ok",
    }  # fmt: skip
    assert layers["attestation"]["what"] == "an attestation root other than AWS's is accepted"


def test_a_dead_name_server(house: Ladder) -> None:
    with fault(house, Node.EXTERNAL, f"nft -f - <<'.'\n{NO_DNS}.", "nft delete table inet silence"):
        code, layers = netcheck(house)
        assert code == 6
        assert list(layers)[-1] == "names"
        assert layers["names"]["what"] == (
            f"no name server answers: {house.topology.external4}: no answer within 1.5 s"
        )
        failed = wgvsock(house, "netcheck", *SOCKET)
        assert b"error[WGV-E102]: names is broken\nwhy: no name server answers" in failed.stderr


@pytest.mark.parametrize(
    ("broken", "mended"),
    [("ip link set eth0 down", UP), ("ip route delete default; ip -6 route delete default", ROUTES)],
    ids=["uplink down", "default route gone"],
)
def test_no_way_to_the_world(house: Ladder, broken: str, mended: str) -> None:
    with fault(house, Node.POD, broken, mended):
        found = wait_for(house, "way out", "broken")
        assert "there is no default route (WGV-E082)" in found["what"]
        assert any("problem" in line and "the way out" in line for line in status_lines(house))


def test_a_slow_path(house: Ladder) -> None:
    house.backend.tap.delay(0.3)
    try:
        code, layers = netcheck(house)
        assert code == 4
        assert layers["path"]["state"] == "warning"
        assert layers["path"]["what"].startswith("slow: ")
    finally:
        house.backend.tap.resume()
    house.wait_ready()


def test_an_application_that_hangs(house: Ladder) -> None:
    with fault(house, Node.ENCLAVE, f"touch {HUNG}", f"rm {HUNG}"):
        found = wait_for(house, "application", "broken")
        assert found["what"].startswith("the application is not ready: ")
        assert found["fix"] == "see its output with wgvsock logs"
        assert status_lines(house)[0] == "relay relay: not ready: application is broken"


def test_a_slow_security_module(house: Ladder) -> None:
    house.backend.nsm.set_faults(delay=3.0)
    try:
        assert wgvsock(house, "relay", "reattest", "--wait", "-c", config(house)).exit_code == 0
    finally:
        house.backend.nsm.reset()
    told = " ".join(wgvsock(house, "netcheck", *SOCKET).stdout.decode().split())
    assert "for its document: its security module (NSM) is slow" in told
    assert any("warning" in line and "for its document" in line for line in status_lines(house))
    house.attest_again()


def test_a_reload_that_is_refused(house: Ladder) -> None:
    good = house.backend.relay_config()
    path = house.backend.write_config(Node.POD, {**good, "log_level": "error"})
    refused = wgvsock(house, "relay", "reload", "-c", path)
    assert refused.exit_code == 2
    assert b"error[WGV-E083]" in refused.stderr
    assert any("the last reload was refused" in line for line in status_lines(house))
    _, layers = netcheck(house)
    assert '"log_level" has changed' in layers["reload"]["what"]
    house.backend.write_config(Node.POD, good)
    taken = wgvsock(house, "relay", "reload", "-c", path).check()
    assert taken.stdout == b"enclave: reloaded\n"
    assert any(line.startswith("  reload       applied ") for line in status_lines(house))


def test_from_a_refusal_to_the_right_policy_with_the_tools_own_words(house: Ladder) -> None:
    good = house.backend.relay_config()
    right = good["attestation"]["pcr_sets"][0]
    wrong = {**good, "attestation": {**good["attestation"], "pcr_sets": [{**right, "pcr0": "ab" * 48}]}}
    path = house.backend.write_config(Node.POD, wrong)
    wgvsock(house, "relay", "reload", "-c", path).check()
    assert wgvsock(house, "relay", "reattest", "--wait", "-c", path).exit_code == 5
    status = json.loads(wgvsock(house, "status", *SOCKET, "--json").stdout)
    refusal = status["enclaves"][0]["refusal"]
    (differs,) = [one for one in refusal["registers"] if not one["equal"]]
    assert (differs["pcr"], differs["measured"], differs["allowed"]) == ("PCR0", right["pcr0"], "ab" * 48)
    # The policy is corrected with what was measured, and tried on the document that was refused.
    judged = wgvsock(house, "attest", "verify", refusal["document"], "-c", path)
    assert judged.exit_code == 5
    at_node(house, Node.POD, f"sed -i s/{'ab' * 48}/{differs['measured']}/ {path}")
    assert wgvsock(house, "attest", "verify", refusal["document"], "-c", path).exit_code == 0
    wgvsock(house, "relay", "reload", "-c", path).check()
    house.wait_ready()


def config(lab: Ladder) -> str:
    """The Relay's configuration file."""
    return lab.backend.write_config(Node.POD, lab.backend.relay_config())


def test_wg_shows_both_ends_and_changes_nothing(house: Ladder) -> None:
    for node in (Node.POD, Node.ENCLAVE):
        shown = house.backend.run(node, ["wg", "show", "wg0", "dump"]).check().stdout.decode().splitlines()
        assert shown[0].split("\t")[0] == "(none)"  # the private key
        assert shown[1].split("\t")[1] == "(none)"  # the preshared key
        refused = house.backend.run(node, ["wg", "set", "wg0", "listen-port", "1"])
        assert refused.exit_code
        assert b"not permitted" in refused.stderr


@contextmanager
def captured(lab: Ladder, layer: str, number: int, copy: Path, *, seconds: float) -> Iterator[None]:
    """The pod captures `number` packets in the meantime, and the file is copied here."""
    file = f"/run/{layer}-{number}.pcap"
    argv = [WGVSOCK, "capture", f"--{layer}", *SOCKET, "-n", str(number), "-o", file]
    capture = lab.backend.spawn(Node.POD, argv, name=f"capture-{layer}-{number}")
    try:
        begun = lambda: lab.backend.run(Node.POD, ["test", "-e", file]).exit_code == 0  # noqa: E731
        lab.backend.deadline(10).poll(begun, "the capture to begin")
        yield
        assert capture.wait(lab.backend.deadline(seconds)) == 0
        assert f"{number} packets captured" in capture.output()
    finally:
        capture.kill()
    copy.write_bytes(lab.backend.run(Node.POD, ["cat", file]).check().stdout)


@pytest.mark.parametrize("layer", ["outer", "inner"])
def test_a_capture_is_read_by_another_program(house: Ladder, layer: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pcap"
    with captured(house, layer, 4, copy, seconds=10):
        house.probe(Node.ENCLAVE, "tcp", house.topology.external4, "7")
    with RawPcapReader(str(copy)) as reader:
        packets = [IP(data) for data, _ in reader]
    assert len(packets) == 4
    if layer == "outer":
        assert all(isinstance(packet[UDP].payload, Wireguard) for packet in packets)
    else:
        ends = {(packet.src, packet.dst) for packet in packets if packet.haslayer(TCP)}
        assert (house.topology.enclave4, house.topology.external4) in ends


@pytest.fixture
def ahead(own_lab: Ladder, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The enclave's clock is 10 s ahead: a guest's own, or in a namespace the one that its agent uses."""
    if isinstance(own_lab.backend, GuestBackend):
        channel = own_lab.backend.enclave_guest.channel()
        channel.set_clock(time.time() + 10)
        yield
        channel.set_clock(time.time())
    else:
        monkeypatch.setenv(CLOCK_AHEAD, "10")
        yield


@pytest.mark.usefixtures("ahead")
def test_a_clock_that_is_ten_seconds_off(own_lab: Ladder) -> None:
    own_lab.start_enclave()
    own_lab.start_relay()
    own_lab.wait_ready()
    look: Callable[[], Any] = lambda: netcheck(own_lab)[1].get("clock", {}).get("state") == "warning"  # noqa: E731
    own_lab.backend.deadline(30).poll(look, "the clock to be told of")
    assert netcheck(own_lab)[1]["clock"]["what"] == "the enclave's clock is 10 s ahead of the relay's"


def test_wireshark_opens_a_capture_with_the_key_log_of_the_laboratory(own_lab: Ladder, tmp_path: Path) -> None:
    if (tshark := shutil.which("tshark")) is None:
        pytest.skip("missing: tshark")
    config = own_lab.backend.relay_config()
    config["interface"] = {**config.get("interface", {}), "profiles": ["plain"]}  # IP packets, and nothing before
    own_lab.start_enclave()
    own_lab.start_relay(config)
    own_lab.wait_ready()
    own_lab.wait_application()
    packets, keys = tmp_path / "outer.pcap", tmp_path / "keys.log"
    with captured(own_lab, "outer", 12, packets, seconds=20):
        own_lab.attest_again()  # and so a handshake is in it
        own_lab.probe(Node.ENCLAVE, "tcp", own_lab.topology.external4, "7", "--bytes", "20000")
    keys.write_text("\n".join(own_lab.history.update().key_log) + "\n")
    command = [tshark, "-r", str(packets), "-o", f"wg.keylog_file:{keys}", "-T", "fields", "-e", "ip.dst", "-Y", "tcp"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert own_lab.topology.external4 in shown
