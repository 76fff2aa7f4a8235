"""[application] of enclave.toml: its meaning, and what it refuses."""

from __future__ import annotations

import pytest

from wgvsock import settings
from wgvsock.enclave.application.settings import ApplicationSettings, Probe
from wgvsock.errors import ConfigurationError
from wgvsock.telemetry.reports import REPORT_PORT


def parse(text: str) -> ApplicationSettings:
    return settings.parse(ApplicationSettings, text)


def test_by_default_nothing_of_its_output_leaves_the_enclave() -> None:
    defaults = parse("")
    assert not defaults.forward_output
    assert defaults.report_port == REPORT_PORT
    assert defaults.restart == "never"
    assert defaults.signals == ()
    assert defaults.probe() is None


@pytest.mark.parametrize(
    ("text", "probe"),
    [
        ("tcp:127.0.0.1:8080", Probe("tcp", "127.0.0.1", 8080)),
        ("tcp:[::1]:8080", Probe("tcp", "::1", 8080)),
        ("http:127.0.0.1:8080", Probe("http", "127.0.0.1", 8080, "/")),
        ("http:[::1]:80/healthz?full=1", Probe("http", "::1", 80, "/healthz?full=1")),
        ("exec:/bin/check --quick", Probe("exec", command=("/bin/check", "--quick"))),
    ],
)
def test_probes(text: str, probe: Probe) -> None:
    assert parse(f'ready = "{text}"').probe() == probe


@pytest.mark.parametrize(
    "line",
    [
        'ready = ""',
        'ready = "exec:"',
        'ready = "exec: "',
        'ready = "tcp:127.0.0.1"',
        'ready = "tcp:127.0.0.1:0"',
        'ready = "tcp:127.0.0.1:99999"',
        'ready = "tcp:localhost:80"',
        'ready = "tcp:127.0.0.1:80/path"',
        'ready = "http:u@127.0.0.1:80/"',
        'ready = "http:127.0.0.1:80/a b"',
        'ready = "http:127.0.0.1:80/a\\r\\nX: y"',
        'ready = "http:127.0.0.1:80/ä"',
        'ready = "udp:127.0.0.1:80"',
        'user = ""',
        'user = "a b"',
        'user = ":5"',
        'env = ["=x"]',
        'env = ["NAME"]',
        'env = ["A=\\u0000"]',
        'signals = ["KILL"]',
        'restart = "sometimes"',
        "output_limit = 1",
        "report_port = 65536",
    ],
)
def test_what_is_refused(line: str) -> None:
    with pytest.raises(ConfigurationError):
        parse(line)


def test_users_and_variables() -> None:
    found = parse('user = "app:1000"\nenv = ["A=", "B=x=y\\nz"]\nsignals = ["HUP", "USR1"]')
    assert found.user == "app:1000"
    assert found.env == ("A=", "B=x=y\nz")
    assert found.signals == ("HUP", "USR1")
