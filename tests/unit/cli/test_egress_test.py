"""What would happen to a connection, by the file and by the running relay."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.unit.control_sockets import ControlSockets
from wgvsock.cli import main
from wgvsock.telemetry.endpoint import Answer, Inquiry, as_json

SOCKET = "/run/wgvsock/relay.sock"

ONE = """
[enclave]
address = "unix:/w"
provisioning_address = "unix:/p"
[[attestation.pcr_sets]]
pcr0 = "{0}"
pcr1 = "{0}"
pcr2 = "{0}"
[dns]
servers = ["10.96.0.10"]
[egress]
default = "deny"
[[egress.allow]]
name = "*.lab.test"
ports = [443]
[[egress.allow]]
network = "10.20.0.0/16"
protocol = "any"
[[egress.deny]]
network = "10.20.66.0/24"
""".format("ab" * 48)

TWO = """
[[attestation.pcr_sets]]
pcr0 = "{0}"
pcr1 = "{0}"
pcr2 = "{0}"
[egress]
default = "deny"
[[enclaves]]
name = "wallet"
address = "vsock:16:51820"
[enclaves.egress]
default = "allow"
[[enclaves]]
name = "vault"
address = "vsock:17:51820"
""".format("ab" * 48)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "relay.toml"
    path.write_text(ONE)
    return path


@pytest.fixture
def test(file: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run it with the file. Returns the exit status, and the output without notes."""

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        status = main(["egress", "test", *arguments, "-c", str(file)])
        return status, capsys.readouterr().out

    return run


def serve(sockets: ControlSockets, answer: Answer) -> list[Mapping[str, str]]:
    """A running relay, and the requests to it."""
    queries: list[Mapping[str, str]] = []

    async def reply(query: Mapping[str, str]) -> Answer:
        queries.append(query)
        return answer

    sockets.serve(SOCKET, {("GET", "/egress/test"): Inquiry(reply)})
    return queries


@pytest.mark.usefixtures("sockets")
@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (("10.20.1.1:22",), 0, '10.20.1.1:22: allowed by rule "allow any to 10.20.0.0/16"'),
        (("10.20.66.1:22",), 1, '10.20.66.1:22: denied by rule "deny any to 10.20.66.0/24"'),
        (("10.20.1.1", "--protocol", "icmp"), 0, '10.20.1.1: allowed by rule "allow any to 10.20.0.0/16"'),
        (("169.254.169.254:80",), 1, "169.254.169.254:80: denied as a closed network that no rule opens"),
        (("10.96.0.10:53", "--protocol", "udp"), 0, "10.96.0.10:53: allowed as a name server of the enclave"),
        (("198.18.73.2:80",), 1, "198.18.73.2:80: denied as the relay's own machine"),
        (("elsewhere.test:443",), 1, "elsewhere.test:443: denied as a name that no rule lets the enclave resolve"),
    ],
)
def test_by_the_file(test: Callable[..., tuple[int, str]], arguments: tuple[str, ...], status: int, line: str) -> None:
    assert test(*arguments) == (status, f"configuration, enclave enclave:\n  {line}\n")


@pytest.mark.usefixtures("sockets")
def test_what_depends_on_the_address_of_a_name_is_said(test: Callable[..., tuple[int, str]]) -> None:
    status, text = test("www.lab.test:443")
    assert status == 0
    assert text.splitlines()[1:] == [
        '  www.lab.test:443: allowed by rule "allow tcp 443 to *.lab.test"',
        '    unless its address matches "deny any to 10.20.66.0/24"',
    ]


def test_without_a_relay_that_runs_that_is_noted(
    sockets: ControlSockets, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["egress", "test", "10.20.1.1:22", "-c", str(file)]) == 0
    assert capsys.readouterr().err.startswith("note: the relay is not running: ")


def test_the_relay_that_runs_has_the_last_word(sockets: ControlSockets, test: Callable[..., tuple[int, str]]) -> None:
    pinned = {"allowed": False, "why": "denied by default", "address": "203.0.113.10", "unless": []}
    queries = serve(sockets, as_json({"schema": "wgvsock/v1", "outcomes": {"enclave": [pinned]}}))
    status, text = test("www.lab.test:443")
    assert status == 1
    assert text.endswith("running relay, enclave enclave:\n  www.lab.test:443 (203.0.113.10): denied by default\n")
    assert "allowed by rule" in text
    assert queries == [{"destination": "www.lab.test:443", "protocol": "tcp", "enclave": ""}]


def test_with_a_socket_alone_there_is_no_file(
    sockets: ControlSockets, prints_json: Callable[..., dict[str, Any]]
) -> None:
    allowed = {"allowed": True, "why": "allowed by default", "address": None, "unless": []}
    serve(sockets, as_json({"schema": "wgvsock/v1", "outcomes": {"wallet": [allowed, allowed]}}))
    answer = prints_json("egress", "test", "[2001:db8::1]:53", "--protocol", "udp", "--socket", SOCKET)
    assert answer == {
        "schema": "wgvsock/v1",
        "destination": "[2001:db8::1]:53",
        "protocol": "udp",
        "configuration": None,
        "relay": {"wallet": [allowed, allowed]},
    }


@pytest.mark.usefixtures("sockets")
def test_every_enclave_by_its_own_policy_or_one_of_them(file: Path, test: Callable[..., tuple[int, str]]) -> None:
    file.write_text(TWO)
    status, text = test("203.0.113.1:443")
    assert status == 1
    assert text == (
        "configuration, enclave wallet:\n  203.0.113.1:443: allowed by default\n"
        "configuration, enclave vault:\n  203.0.113.1:443: denied by default\n"
    )
    assert test("203.0.113.1:443", "--enclave", "wallet")[0] == 0


def test_an_enclave_that_there_is_not(sockets: ControlSockets, file: Path, fails: Callable[..., Any]) -> None:
    command = ("egress", "test", "203.0.113.1:443", "--enclave", "vault")
    failure = fails(*command, "-c", str(file), status=2)
    assert (failure.what, failure.why) == ("there is no enclave 'vault'", "the known enclaves are: enclave")
    serve(sockets, as_json({"schema": "wgvsock/v1", "enclave": None, "enclaves": ["wallet"]}))
    assert fails(*command, "--socket", SOCKET, status=2).why == "the known enclaves are: wallet"


def test_a_relay_whose_ways_are_not_set_up(
    sockets: ControlSockets, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(sockets, as_json({"schema": "wgvsock/v1", "enclave": None, "enclaves": ["enclave"]}))
    assert main(["egress", "test", "10.20.1.1:22", "--socket", SOCKET]) == 1
    assert capsys.readouterr() == ("", "note: the relay has not set up an enclave's tunnel yet\n")


def test_odd_answers_are_no_permission(sockets: ControlSockets, capsys: pytest.CaptureFixture[str]) -> None:
    odd: list[Any] = [{}, {"x": 1}, {"x": [1]}, {"x": [{"allowed": "yes"}]}, {"x": [{"why": 3, "unless": [1]}]}]
    for outcomes in odd:
        serve(sockets, as_json({"schema": "wgvsock/v1", "outcomes": outcomes}))
        assert main(["egress", "test", "10.20.1.1:22", "--socket", SOCKET]) == 1
    assert "allowed" not in capsys.readouterr().out


@pytest.mark.usefixtures("sockets")
def test_the_policy_of_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., Any]) -> None:
    path = tmp_path / "enclave.toml"
    path.write_text('[egress]\ndefault = "deny"\n[[egress.allow]]\nnetwork = "10.20.0.0/16"\n')
    command = ("egress", "test", "--role", "enclave", "-c", str(path))
    for destination, status, what in (("10.20.1.1:22", 0, "allowed by rule"), ("10.21.1.1:22", 1, "denied by default")):
        assert main([*command, destination]) == status
        told = capsys.readouterr()
        assert what in told.out
        assert (
            told.err
            == "note: the addresses of the relay and of the name servers are unknown until a relay assigns them\n"
        )
    path.write_text("")
    assert "only the relay" in fails(*command, "10.20.1.1:22", status=2).why


@pytest.mark.usefixtures("sockets")
def test_what_is_no_destination(file: Path, fails: Callable[..., Any]) -> None:
    failure = fails("egress", "test", "www.lab.test", "-c", str(file), status=2)
    assert failure.code == "WGV-E001"
    assert "the port" in failure.why


def test_what_stands_in_front_of_the_verb_holds_too(
    sockets: ControlSockets, capsys: pytest.CaptureFixture[str]
) -> None:
    allowed = {"allowed": True, "why": "allowed by default", "address": None, "unless": []}
    queries = serve(sockets, as_json({"schema": "wgvsock/v1", "outcomes": {"wallet": [allowed]}}))
    assert main(["egress", "--json", "--enclave", "wallet", "--socket", SOCKET, "test", "10.20.1.1:22"]) == 0
    assert json.loads(capsys.readouterr().out)["relay"] == {"wallet": [allowed]}
    assert queries[0]["enclave"] == "wallet"


def test_a_destination_comes_back_as_it_was_read(sockets: ControlSockets) -> None:
    queries = serve(sockets, as_json({"schema": "wgvsock/v1", "outcomes": {}}))
    main(["egress", "test", "WWW.Lab.Test.:443", "--socket", SOCKET])
    assert json.loads(json.dumps(queries[0]))["destination"] == "www.lab.test:443"
