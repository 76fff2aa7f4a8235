"""What is not loaded until it is needed: start-up is what is imported, and what only one option needs comes with it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

import pytest

PLAIN: Final = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
"""The environment of a child that imports what the command imports, and nothing for coverage's sake."""

COMMAND: Final = ("asyncio", "cryptography", "cbor2", "logging", "ssl", "tomllib", "subprocess")
NOBODY: Final = ("http.client", "http.server", "wgvsock.testing", "lab")
NO_NETLINK: Final = ("pyroute2", "unittest", "multiprocessing", "difflib")
"""pyroute2's rtnetlink: 100 modules and the others behind it."""

REST_OF_NETLINK: Final = ("pyroute2.conntrack", "pyroute2.ipdb", "pyroute2.ndb", "pyroute2.plan9", "sqlite3")
"""What pyroute2's own package would import as well: another 66 modules."""

NO_NAMES: Final = ("dns", "wgvsock.dns.forwarder")
NO_ENGINE: Final = ("wgvsock.uplink.engine", "wgvsock.uplink.libslirp")
NO_VERIFIER: Final = ("cryptography.x509", "email", "wgvsock.attestation.verifier", "wgvsock.attestation.certificates")

FORBIDDEN: Final = {
    "wgvsock.cli.entry": (*NOBODY, *NO_NETLINK, *COMMAND, "wgvsock.relay", "wgvsock.enclave", "wgvsock.wireguard"),
    "wgvsock.cli.enclave, wgvsock.devices.nsm, wgvsock.machine.enclave, wgvsock.enclave.supervisor": (
        *(*NOBODY, *NO_NAMES, *NO_ENGINE, *NO_VERIFIER, *REST_OF_NETLINK),
        *("wgvsock.dns", "wgvsock.system.conntrack", "wgvsock.system.filter", "wgvsock.system.routing_rule"),
        *("wgvsock.relay", "wgvsock.system.nitro_cli", "wgvsock.cli.status", "wgvsock.telemetry.client"),
    ),
    "wgvsock.cli.relay, wgvsock.machine.relay, wgvsock.relay.service": (
        *NOBODY,
        *NO_NAMES,
        *NO_ENGINE,
        *REST_OF_NETLINK,
        "wgvsock.enclave",
    ),
    "wgvsock.cli.device": (
        *(*NOBODY, *NO_NETLINK, *NO_NAMES, *NO_ENGINE, *NO_VERIFIER),
        *("wgvsock.relay", "wgvsock.enclave", "wgvsock.provisioning", "cbor2"),
    ),
}
"""By what is imported until a command runs: packages and modules that are not loaded then."""


def loaded_by(code: str, *arguments: str) -> set[str]:
    script = f"import sys; {code}; print(*sys.modules, file=sys.stderr)"
    command = (sys.executable, "-c", script, *arguments)
    return set(subprocess.run(command, capture_output=True, text=True, check=True, env=PLAIN).stderr.split())


def within(loaded: set[str], forbidden: tuple[str, ...]) -> set[str]:
    return {name for name in loaded if any(f"{name}.".startswith(f"{package}.") for package in forbidden)}


@pytest.mark.parametrize("modules", FORBIDDEN)
def test_what_is_not_loaded_until_it_runs(modules: str) -> None:
    loaded = loaded_by(f"import {modules}")
    assert set(modules.split(", ")) <= loaded
    assert within(loaded, FORBIDDEN[modules]) == set()


@pytest.mark.parametrize("arguments", [("--help",), ("relay", "run", "--help"), ("enclave", "run", "--help")])
def test_help_loads_no_service(arguments: tuple[str, ...]) -> None:
    run = "import contextlib, wgvsock.cli\nwith contextlib.suppress(SystemExit): wgvsock.cli.main()\nimport sys"
    loaded = loaded_by(f"exec({run!r})", *arguments)
    assert "wgvsock.cli.entry" in loaded
    services = ("wgvsock.relay.service", "wgvsock.enclave.supervisor", "wgvsock.wireguard.device")
    assert within(loaded, (*NOBODY, *NO_NETLINK, *services, *(COMMAND if arguments == ("--help",) else ()))) == set()


def test_a_package_is_told_by_its_whole_name() -> None:
    assert within({"email.utils", "emails", "dns"}, ("email", "dns.name")) == {"email.utils"}
