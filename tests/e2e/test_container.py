"""The pod: the manifest's restrictions are in force, what it grants is needed, and it recovers from every end.

Only the `container` backend has one: ``make e2e LAB=container``. With ``UPLINK=userspace`` it is the overlay
`userspace`: a user other than root, no capability, no device.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import uplinks
from lab.container.backend import ContainerBackend, ContainerProcess
from lab.container.seccomp import PROFILE, text
from lab.ladder import Ladder
from lab.netns import build, namespaces
from lab.topology import Node

pytestmark = pytest.mark.lab

USERSPACE = uplinks.asked_for() == "userspace"
USER, CAPABILITIES, MEMORY = ("65532", 0, 448 << 20) if USERSPACE else ("0", 1 << 12, 192 << 20)
KERNELS = pytest.mark.skipif(USERSPACE, reason="UPLINK=userspace: there is neither capability, device nor forwarding")
USERSPACES = pytest.mark.skipif(not USERSPACE, reason="UPLINK is not userspace: the kernel has ports and pings")
PYTHON = "/opt/wgvsock/bin/python"
IPV6_FORWARDING = "net.ipv6.conf.all.forwarding"
LONGEST_RETURN = 20
"""Seconds. A Relay that is not recognised by its key would wait for 180."""

ALLOCATE = "held = []\nwhile True: held.append(bytearray(1 << 20))"


@pytest.fixture
def pod(own_lab: Ladder) -> Iterator[ContainerBackend]:
    backend = own_lab.backend
    if not isinstance(backend, ContainerBackend):
        pytest.skip("there is a pod in LAB=container alone")
    yield backend
    own_lab.clear()
    backend.dropped = backend.left_out = ()
    backend.profile = PROFILE


def relay_of(lab: Ladder) -> ContainerProcess:
    assert isinstance(lab.relay, ContainerProcess)
    return lab.relay


def ends_with(lab: Ladder, code: str, status: int) -> str:
    """Start a Relay that cannot run, and return its error."""
    lab.start_relay()
    relay = relay_of(lab)
    assert relay.wait(lab.backend.deadline(20)) == status, relay.output()
    assert f"error[{code}]" in relay.output()
    return relay.output()


def get(lab: Ladder, path: str) -> int:
    """Return the answer to a kubelet probe."""
    assert isinstance(lab.backend, ContainerBackend)
    port, _ = lab.backend.pod.probe("readinessProbe")
    script = (
        "import http.client, sys\n"
        "c = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=5)\n"
        "c.request('GET', sys.argv[3])\n"
        "print(c.getresponse().status)"
    )
    done = lab.backend.run(Node.NODE, ["/usr/bin/python3", "-c", script, lab.topology.pod4, str(port), path])
    return int(done.check().stdout)


# -- what is in force --------------------------------------------------------------------------------------------------


def test_the_manifest_s_restrictions_are_in_force(own_lab: Ladder, pod: ContainerBackend) -> None:
    own_lab.raise_tunnel()
    pid = relay_of(own_lab).first_process()
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    for name in ("CapEff", "CapPrm", "CapBnd"):
        assert int(status[name], 16) == CAPABILITIES
    assert int(status["CapAmb"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {USER}
    mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    options = {fields[4]: fields[5].split(",") for fields in mounts}
    assert {
        path for path, words in options.items() if "rw" in words and not path.startswith(("/dev", "/proc", "/sys"))
    } == {
        "/run",
        "/etc/resolv.conf",
        str(pod.directory / "relay-side"),
    }
    found = pod.engine.inspect(relay_of(own_lab).container)
    assert found is not None
    assert found["HostConfig"]["Memory"] == MEMORY


def test_the_image_s_own_doctor_finds_the_pod_in_order(own_lab: Ladder, pod: ContainerBackend) -> None:
    own_lab.raise_tunnel()
    said = pod.execute("wgvsock", "doctor", "-c", "/etc/wgvsock/relay.toml", "--json")
    answer = json.loads(said.stdout)
    assert (said.exit_code, answer["ok"]) == (0, True), answer
    assert {check["name"]: check["verdict"] for check in answer["checks"]}["/etc/wgvsock-signing/signing.key"] == "ok"
    assert json.loads(pod.execute("wgvsock", "status", "--json").stdout)["ready"] is True


def test_probes_are_answered(own_lab: Ladder, pod: ContainerBackend) -> None:
    own_lab.start_relay()
    pod.deadline(20).poll(lambda: pod.status(Node.POD), "the Relay to answer")
    _, live = pod.pod.probe("livenessProbe")
    _, ready = pod.pod.probe("readinessProbe")
    assert (get(own_lab, live), get(own_lab, ready)) == (200, 503)  # no enclave: alive, and not ready
    own_lab.start_enclave()
    own_lab.wait_ready()
    assert (get(own_lab, live), get(own_lab, ready)) == (200, 200)


# -- what is needed ----------------------------------------------------------------------------------------------------


@KERNELS
def test_without_net_admin(own_lab: Ladder, pod: ContainerBackend) -> None:
    pod.dropped = ("NET_ADMIN",)
    assert "NET_ADMIN" in ends_with(own_lab, "WGV-E071", 7)


@KERNELS
def test_without_the_tun_device(own_lab: Ladder, pod: ContainerBackend) -> None:
    pod.left_out = ("tun",)
    assert "/dev/net/tun" in ends_with(own_lab, "WGV-E070", 7)


def test_without_the_secret(own_lab: Ladder, pod: ContainerBackend) -> None:
    pod.left_out = ("signing",)
    assert "signing.key" in ends_with(own_lab, "WGV-E081", 2)


def test_without_the_config_map(own_lab: Ladder, pod: ContainerBackend) -> None:
    pod.left_out = ("config",)
    assert "relay.toml" in ends_with(own_lab, "WGV-E004", 2)


def test_without_the_emptydir_nothing_can_be_written(own_lab: Ladder, pod: ContainerBackend) -> None:
    pod.left_out = ("run",)
    ends_with(own_lab, "WGV-E054", 7)


def test_without_the_profile_s_line_of_vsock(own_lab: Ladder, pod: ContainerBackend) -> None:
    pod.profile = pod.directory / "profile.json"
    pod.profile.write_text(text({"AF_VSOCK"}))
    # No socket can be made, and so nothing is ever connected: this machine's own vsock stays as it is.
    words = [*pod.pod.restrictions(profile=pod.profile), "--rm", "--no-hosts", "--entrypoint", PYTHON]
    named = pod.engine.create_words("socket", "none", words, pod.image, ["-c", "import socket; socket.socket(40, 1)"])
    assert b"PermissionError" in pod.engine.run(*named, check=False).stderr
    config = pod.relay_config()
    config["enclave"] = {"address": "vsock:16:51820", "addresses": config["enclave"]["addresses"]}
    own_lab.start_relay(config)
    relay = relay_of(own_lab)
    relay.wait_for_line("WGV-E012", pod.deadline(20))
    assert "allow AF_VSOCK in the container's seccomp profile" in relay.output()
    assert relay.wait(pod.deadline(20)) == 7


@KERNELS
def test_without_the_sysctl_ipv4_alone_is_the_way(own_lab: Ladder, pod: ContainerBackend) -> None:
    namespace = build.namespace(pod.prefix, Node.POD)
    namespaces.set_sysctl(namespace, IPV6_FORWARDING, "0")
    try:
        own_lab.raise_tunnel()
        own_lab.probe(Node.ENCLAVE, "tcp", own_lab.topology.external4, "7")
        said = relay_of(own_lab).output()
        assert "the relay is IPv4-only" in said
        assert "code=WGV-E051" in said
        assert own_lab.relay_status()["nat"]["unset_sysctls"] == [IPV6_FORWARDING]
        routes = pod.run(Node.ENCLAVE, ["ip", "-6", "route", "show", "default"]).check().stdout
        assert routes == b""  # none into the void
        status, advice = doctor(pod)
        assert status == 0
        assert "overlays/ipv6" in advice
    finally:
        namespaces.set_sysctl(namespace, IPV6_FORWARDING, "1")


@USERSPACES
def test_without_the_sysctls_there_are_neither_low_ports_nor_pings(own_lab: Ladder, pod: ContainerBackend) -> None:
    namespace, application = build.namespace(pod.prefix, Node.POD), own_lab.topology.application
    assert application.echo_port < application.http_port
    taken = {"net.ipv4.ip_unprivileged_port_start": str(application.http_port), "net.ipv4.ping_group_range": "1 0"}
    for name, value in taken.items():
        namespaces.set_sysctl(namespace, name, value)
    try:
        own_lab.start_enclave()
        own_lab.start_relay()
        relay_of(own_lab).wait_for_line(f"cannot publish tcp:{application.echo_port}", pod.deadline(20))
        problem = own_lab.enclave_status()["nat"]["problem"]
        assert (problem["code"], own_lab.relay_status()["ready"]) == ("WGV-E106", False)
        assert "net.ipv4.ip_unprivileged_port_start" in problem["fix"]
        own_lab.probe(Node.EXTERNAL, "http", own_lab.topology.pod4, str(application.http_port), "/whoami")
        own_lab.probe(Node.ENCLAVE, "tcp", own_lab.topology.external4, "7")
        assert own_lab.has_no_answer(Node.ENCLAVE, "ping", own_lab.topology.external4, patience=2)
    finally:
        for name in taken:
            namespaces.set_sysctl(namespace, name, pod.pod.sysctls[name])


def doctor(pod: ContainerBackend) -> tuple[int, str]:
    """Return what doctor reports in the same pod."""
    done = pod.execute("wgvsock", "doctor", "-c", "/etc/wgvsock/relay.toml")
    return done.exit_code, done.stdout.decode()


# -- its ends ----------------------------------------------------------------------------------------------------------


def test_sigterm_ends_it_within_its_grace_period_and_leaves_nothing(own_lab: Ladder, pod: ContainerBackend) -> None:
    before = own_lab.state(Node.POD)
    own_lab.raise_tunnel()
    relay = relay_of(own_lab)
    relay.signal(signal.SIGTERM)
    assert relay.wait(pod.deadline(pod.pod.grace)) == 0
    assert own_lab.state(Node.POD) == before


def test_a_container_that_is_restarted_in_its_pod_keeps_its_connections(own_lab: Ladder, pod: ContainerBackend) -> None:
    own_lab.raise_tunnel()
    relay_of(own_lab).kill()
    own_lab.start_relay()
    own_lab.wait_ready(pod.deadline(LONGEST_RETURN))
    own_lab.probe(Node.ENCLAVE, "tcp", own_lab.topology.external4, "7")


def test_a_pod_that_is_replaced_is_known_by_its_secret(own_lab: Ladder, pod: ContainerBackend) -> None:
    own_lab.raise_tunnel()
    own_lab.stop_relay()
    pod.replace_pod()
    own_lab.start_relay()
    own_lab.wait_ready(pod.deadline(LONGEST_RETURN))


def test_a_pod_with_another_secret_is_not_known(own_lab: Ladder, pod: ContainerBackend) -> None:
    own_lab.raise_tunnel()
    own_lab.stop_relay()
    pod.replace_pod()
    pod.new_signing_key()
    own_lab.start_relay()

    def refused() -> bool:
        error = (pod.status(Node.POD) or {"provisioning": {"error": None}})["provisioning"]["error"]
        return bool(error) and error["code"] == "WGV-E044"

    pod.deadline(LONGEST_RETURN).poll(refused, "the enclave to refuse a Relay that it does not know")


def test_a_relay_that_is_killed_for_its_memory_comes_back(own_lab: Ladder, pod: ContainerBackend) -> None:
    own_lab.raise_tunnel()
    relay = relay_of(own_lab)
    Path(f"/proc/{relay.first_process()}/oom_score_adj").write_text("1000")  # it, and not who takes the memory
    pod.execute("/opt/wgvsock/bin/python", "-c", ALLOCATE)
    assert relay.wait(pod.deadline(20)) == -signal.SIGKILL
    own_lab.start_relay()
    own_lab.wait_ready(pod.deadline(LONGEST_RETURN))
