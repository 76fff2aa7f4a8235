"""The application's life cycle, seen from outside: output, readiness and exit status reach the Relay's operator."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.guest.command import alone
from lab.ladder import Ladder
from lab.topology import Node

pytestmark = pytest.mark.lab

LINES = 10_000
HEALTH = "http://127.0.0.1:9807"
SCRATCH = "/run/wgvsock/application-scratch"
WORKS = f"{SCRATCH}-works"
NUMBERED = re.compile(r"^enclave=enclave stream=stdout line (\d+)$", re.MULTILINE)

HOSTILE = r"""
printf '\033[2J\033]0;owned\007\n'
printf 'one\rtwo\n'
printf 'right\342\200\256to left, next\302\205line, separated\342\200\250line\n'
printf '\033[31mred' >&2; echo >&2
printf '{"event":"exited","number":1,"state":{"phase":"ended","code":0}}\n'
printf 'enclave=other stream=stdout forged\n'
head -c 100000 /dev/zero | tr '\0' 'x'; echo
head -c 50000 /dev/urandom; echo
echo the end
"""


def start(
    lab: Ladder, command: str | Sequence[str], *, relay: dict[str, Any] | None = None, **application: Any
) -> None:
    """A Relay and an Enclave with an application: a shell script, or a command."""
    argv = ["sh", "-c", command] if isinstance(command, str) else command
    enclave = {**lab.backend.enclave_config(), "application": {"forward_output": True, **application}}
    lab.start_enclave(enclave, application=argv)
    lab.start_relay(
        {
            **lab.backend.relay_config(),
            "application": relay or {},
            "health": {"listen": HEALTH.replace("http://", "tcp:")},
        }
    )


def output(lab: Ladder) -> str:
    assert lab.relay is not None
    return lab.relay.output()


def wait_for(lab: Ladder, text: str) -> None:
    assert lab.relay is not None
    lab.relay.wait_for_line(text, lab.backend.deadline(30))


def wgvsock(lab: Ladder, *arguments: str) -> str:
    """The operator's command in the pod."""
    command = [str(Path(sys.executable).with_name("wgvsock")), *arguments]
    return lab.backend.run(Node.POD, command).check().stdout.decode()


def test_ten_thousand_lines_and_an_exit_status_across_a_lost_stream(own_lab: Ladder) -> None:
    script = f"""
        i=0; while [ $i -lt {LINES} ]; do
            echo line $i; i=$((i+1)); [ $i -ne 5000 ] || touch /tmp/half; [ $i -ne 5001 ] || sleep 1
        done; exit 3
    """
    start(own_lab, script, relay={"on_exit": "stop"}, output_limit=16 << 20)
    wait_for(own_lab, "line 4000")
    own_lab.backend.tap.drop()
    own_lab.backend.tap.resume()
    assert own_lab.relay is not None
    assert own_lab.relay.wait(own_lab.backend.deadline(60)) == 3
    assert [int(number) for number in NUMBERED.findall(output(own_lab))] == list(range(LINES))
    assert "stream=lost" not in output(own_lab)
    assert own_lab.enclave is not None
    assert own_lab.enclave.wait(own_lab.backend.deadline(30)) == 3
    own_lab.enclave.kill()
    own_lab.relay.kill()


def test_status_and_readiness_follow_the_probe(own_lab: Ladder) -> None:
    start(own_lab, "rm -f /tmp/ok; exec sleep 600", ready="exec:/bin/sh -c true", ready_interval=0.2)
    status = own_lab.wait_ready()
    assert status["application"]["ready"] is True
    assert status["conditions"]["application"] is True
    own_lab.clear()
    marker = "/run/wgvsock/marker"
    start(own_lab, "exec sleep 600", ready=f"exec:test -e {marker}", ready_interval=0.2)

    def conditions() -> dict[str, Any]:
        found: dict[str, Any] = (own_lab.backend.status(Node.POD) or {}).get("conditions", {})
        return found

    own_lab.backend.deadline(20).poll(lambda: conditions().get("path"), "the path")
    assert conditions()["application"] is False
    own_lab.backend.deadline(10).poll(
        lambda: "ended with status 1" in (own_lab.enclave_status()["application"] or {"why": ""})["why"], "the reason"
    )
    own_lab.backend.run(Node.ENCLAVE, ["touch", marker]).check()
    own_lab.backend.deadline(1.5).poll(lambda: conditions()["application"], "readiness")
    own_lab.backend.run(Node.ENCLAVE, ["rm", marker]).check()
    own_lab.backend.deadline(1.5).poll(lambda: conditions()["application"] is False, "its end")


def test_the_processor_use_of_an_enclave_is_that_of_its_work(own_lab: Ladder) -> None:
    start(own_lab, "exec sleep 600")
    own_lab.wait_ready()

    def processor() -> dict[str, Any]:
        found: dict[str, Any] = (own_lab.backend.status(Node.POD) or {}).get("processor") or {}
        return found

    own_lab.backend.deadline(20).poll(lambda: processor().get("percent") is not None, "two reports")
    before = processor()
    assert before["processors"] >= 1
    spin = "import time\nend = time.process_time() + 1\nwhile time.process_time() < end: pass"
    own_lab.backend.run(Node.ENCLAVE, [sys.executable, "-I", "-c", spin]).check()
    own_lab.backend.deadline(20).poll(lambda: processor()["clock_seconds"] > before["clock_seconds"] + 5, "reports")
    after = processor()
    assert after["busy_seconds"] - before["busy_seconds"] >= 0.9
    assert after["agent_seconds"] > before["agent_seconds"]
    assert 0 < after["percent"] <= 100 * after["processors"]
    assert "of one CPU (agent" in wgvsock(own_lab, "status")
    (row,) = json.loads(wgvsock(own_lab, "top", "-n", "1", "--json"))["enclaves"]
    assert 0 < row["processor_percent"] <= 100 * after["processors"]


def health(lab: Ladder) -> tuple[int, str]:
    """Return the results of the Relay's probe and metrics, as an orchestrator gets them."""
    script = f"""
import urllib.error, urllib.request
try: ready = urllib.request.urlopen("{HEALTH}/ready", timeout=5).status
except urllib.error.HTTPError as error: ready = error.code
print(ready, urllib.request.urlopen("{HEALTH}/metrics", timeout=5).read().decode())
"""
    ready, metrics = (
        lab.backend.run(Node.POD, [sys.executable, "-I", "-c", script]).check().stdout.decode().split(" ", 1)
    )
    return int(ready), metrics


def application(lab: Ladder) -> dict[str, Any]:
    return (lab.backend.status(Node.POD) or {}).get("application") or {}


def test_an_application_is_started_again_until_it_works(own_lab: Ladder) -> None:
    script = f"""
        echo started; echo x >> {SCRATCH}; [ $(wc -l < {SCRATCH}) -gt 2 ] || exit 7; touch {WORKS}; exec sleep 600
    """
    own_lab.backend.run(Node.ENCLAVE, ["rm", "-f", SCRATCH, WORKS]).check()
    # A slow machine asks before the failing application has ended, so the probe must tell the one that works.
    start(own_lab, script, restart="on-failure", ready=f"exec:/bin/ls {WORKS}", ready_interval=0.2)
    status = own_lab.wait_ready()  # two pauses with it, of a second and of two
    assert status["application"]["starts"] == 3
    assert status["application"]["exit_status"] == 7
    ready, metrics = health(own_lab)
    assert ready == 200
    assert 'wgvsock_application_starts_total{enclave="enclave"} 3' in metrics
    assert 'wgvsock_application_exit_status{enclave="enclave"} 7' in metrics
    assert 'wgvsock_application_running{enclave="enclave"} 1' in metrics
    assert output(own_lab).count("stream=stdout started") == 3
    assert "lines of output lost" not in wgvsock(own_lab, "status")


def test_a_relay_outlives_the_application_and_serves_the_next_one(own_lab: Ladder) -> None:
    script = f"rm -f {SCRATCH}; while [ ! -e {SCRATCH} ]; do sleep 0.1; done; exit 3"
    relay = {"on_exit": "restart"}
    start(own_lab, script, relay=relay, ready="exec:/bin/sh -c true", ready_interval=0.2)
    own_lab.wait_ready()
    assert health(own_lab)[0] == 200
    own_lab.backend.run(Node.ENCLAVE, ["touch", SCRATCH]).check()
    own_lab.backend.deadline(1.5).poll(lambda: application(own_lab).get("phase") == "ended", "its end to be told")
    assert not own_lab.relay_status()["ready"]
    ready, metrics = health(own_lab)
    assert ready == 503
    assert 'wgvsock_application_exit_status{enclave="enclave"} 3' in metrics
    assert 'wgvsock_application_running{enclave="enclave"} 0' in metrics
    assert own_lab.enclave is not None
    assert own_lab.enclave.wait(own_lab.backend.deadline(30)) == 3
    own_lab.enclave.kill()

    assert own_lab.relay is not None
    assert own_lab.relay.poll() is None
    enclave = {**own_lab.backend.enclave_config(), "application": {"ready": "exec:/bin/sh -c true"}}
    own_lab.start_enclave(enclave, application=["sleep", "600"])
    status = own_lab.wait_ready()
    assert status["application"]["phase"] == "running"
    assert health(own_lab)[0] == 200


def test_a_hostile_application_leaves_terminal_and_log_clean(own_lab: Ladder) -> None:
    start(own_lab, HOSTILE + "exec sleep 600", output_limit=1 << 20)
    wait_for(own_lab, "stream=stdout the end")
    text = output(own_lab)
    lines = [line for line in text.splitlines() if line.startswith("enclave=")]
    assert all(line.isprintable() and len(line) < 16_000 for line in text.splitlines())
    assert all(line.startswith("enclave=enclave stream=std") for line in lines)
    assert r"enclave=enclave stream=stdout \u001b[2J\u001b]0;owned\u0007" in lines
    assert r"enclave=enclave stream=stdout right\u202eto left, next\u0085line, separated\u2028line" in lines
    assert r"enclave=enclave stream=stderr \u001b[31mred" in lines
    assert "enclave=enclave stream=stdout enclave=other stream=stdout forged" in lines
    assert own_lab.enclave_status()["application"]["phase"] == "running"
    listed = wgvsock(own_lab, "logs")
    assert all(line.isprintable() for line in listed.splitlines())
    assert listed.rstrip().endswith("stdout: the end")


def test_by_default_no_output_leaves_the_enclave(own_lab: Ladder) -> None:
    start(own_lab, "echo secret; exit 5", relay={"on_exit": "stop"}, forward_output=False)
    assert own_lab.relay is not None
    assert own_lab.relay.wait(own_lab.backend.deadline(30)) == 5
    assert "secret" not in output(own_lab)
    own_lab.relay.kill()
    assert own_lab.enclave is not None
    own_lab.enclave.wait(own_lab.backend.deadline(30))
    own_lab.enclave.kill()


def test_signals_that_the_image_permits(own_lab: Ladder) -> None:
    script = "trap 'echo reloaded' HUP; echo waiting; while :; do sleep 0.1; done"
    start(own_lab, script, signals=["HUP"])
    wait_for(own_lab, "stream=stdout waiting")
    wgvsock(own_lab, "signal", "HUP")
    wait_for(own_lab, "stream=stdout reloaded")
    command = [str(Path(sys.executable).with_name("wgvsock")), "signal", "USR1"]
    refused = own_lab.backend.run(Node.POD, command)
    assert refused.exit_code == 6
    assert b"the image permits HUP" in refused.stderr


def _connects(lab: Ladder, node: Node, *address: str) -> bool:
    return not lab.has_no_answer(node, "tcp", *address, patience=2.0)


def test_only_the_relay_reaches_the_reports(own_lab: Ladder) -> None:
    start(own_lab, "echo hello; exec sleep 600")
    wait_for(own_lab, "stream=stdout hello")
    topology = own_lab.topology
    for host in (topology.enclave4, "127.0.0.1", topology.enclave6):
        assert not _connects(own_lab, Node.ENCLAVE, host, "51822")  # not even the application
    for host in (topology.pod4, topology.enclave4):
        assert not _connects(own_lab, Node.EXTERNAL, host, "51822")


def test_reports_pass_where_nothing_else_may_leave(own_lab: Ladder) -> None:
    """The relay asks. The answers to an admitted client are not egress under either policy."""
    enclave = {
        **own_lab.backend.enclave_config(),
        "application": {"forward_output": True, "ready": "exec:/bin/sh -c true"},
        "egress": {"default": "deny"},
    }
    own_lab.start_enclave(enclave, application=["sh", "-c", "echo hello; exec sleep 600"])
    own_lab.start_relay({**own_lab.backend.relay_config(), "egress": {"default": "deny"}})
    wait_for(own_lab, "stream=stdout hello")
    assert own_lab.wait_ready()["conditions"]["application"] is True


BURST = 100_000_000
"""Size in bytes."""

MEMORY_LIMIT = 12
"""MiB by which a burst may raise the largest resident set. All kept output is bounded: 128 KiB at the agent, plus
Python's overhead for each piece; at the Relay 256 Ki characters of lines, 1 MiB waiting for standard output, and a
report of 32 KiB in transit. The concurrent transfer fills socket buffers and the queues of the data plane. Keeping
the whole output would take about 95 MiB.
"""


@pytest.mark.slow
def test_a_burst_of_output_is_bounded_and_every_lost_byte_is_counted(own_lab: Ladder) -> None:
    size, carried = (BURST, 32 << 20) if own_lab.backend.scale < 3 else (BURST // 10, 2 << 20)  # or emulated processors
    start(own_lab, [*alone("chatter"), "--bytes", str(size)])
    own_lab.wait_ready()
    wait_for(own_lab, "stream=stdout waiting")
    own_lab.carry(Node.ENCLAVE, size=carried)
    before = {node: own_lab.peak_memory(node) for node in (Node.POD, Node.ENCLAVE)}
    assert own_lab.enclave is not None
    own_lab.enclave.signal(signal.SIGHUP)  # the agent hands it on
    own_lab.carry(Node.ENCLAVE, size=carried)
    wait_for(own_lab, "stream=stdout written")
    grown = {node: own_lab.peak_memory(node) - before[node] for node in before}
    assert max(grown.values()) < MEMORY_LIMIT, grown

    application = own_lab.enclave_status()["application"]
    text = output(own_lab)
    shown = re.findall(r"^enclave=enclave stream=stdout (.*)$", text, re.MULTILINE)
    (written,) = (int(line.split()[1]) for line in shown if line.startswith("written"))
    ends = [f"{line}\n" for line in ("waiting", f"written {written} bytes")]
    lines = written // 100 + len(ends)
    assert application["lost_bytes"] > size // 2
    assert sum(map(len, shown)) + lines - application["lost_lines"] + application["lost_bytes"] == written + len(
        "".join(ends)
    )
    said = re.findall(r"stream=lost (\d+) lines \((\d+) bytes\) were written faster than read$", text, re.MULTILINE)
    assert sum(int(size) for _, size in said) == application["lost_bytes"]
    assert " of output lost" in wgvsock(own_lab, "status")
