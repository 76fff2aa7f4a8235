"""Which servers look an enclave's names up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from wgvsock.addresses import IpAddress
from wgvsock.egress.settings import EgressSettings, RuleSettings
from wgvsock.relay.enclaves.names import NameService, forwards, upstreams
from wgvsock.relay.sections import DnsSettings
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.system.errors import ResolverError
from wgvsock.system.resolver import ResolverSettings
from wgvsock.testing import without_waiting
from wgvsock.testing.machine import MemoryMachine
from wgvsock.transports.errors import ListenError

GATEWAYS = (ip_address("10.73.0.1"), ip_address("fd73::1"))


def addresses(*texts: str) -> tuple[IpAddress, ...]:
    return tuple(map(ip_address, texts))


def own(*servers: str) -> ResolverSettings:
    return ResolverSettings(addresses(*servers))


@pytest.mark.parametrize(
    ("dns", "servers", "expected"),
    [
        (DnsSettings(), ["10.0.0.1"], False),
        (DnsSettings(), [], False),
        (DnsSettings(), ["127.0.0.53"], True),
        (DnsSettings(), ["127.0.0.11"], True),
        (DnsSettings(), ["127.0.0.53", "::1"], True),
        (DnsSettings(), ["127.0.0.53", "10.0.0.1"], False),
        (DnsSettings(servers=addresses("10.0.0.1")), ["127.0.0.11"], False),
        (DnsSettings(servers=addresses("127.0.0.1")), ["10.0.0.1"], True),
        (DnsSettings(forward=True), ["10.0.0.1"], True),
        (DnsSettings(forward=False), ["127.0.0.11"], False),
    ],
)
def test_the_relay_forwards_where_it_is_told_to_or_where_the_enclave_could_not_ask(
    spec: EnclaveSpec, dns: DnsSettings, servers: list[str], expected: bool
) -> None:
    assert forwards(replace(spec, dns=dns), own(*servers)) is expected


@pytest.mark.parametrize(
    ("rule", "expected"), [(RuleSettings(name="*.test"), True), (RuleSettings(network=ip_network("10.0.0.0/8")), False)]
)
def test_a_policy_of_names_needs_somebody_who_sees_them(spec: EnclaveSpec, rule: RuleSettings, expected: bool) -> None:
    named = replace(spec, dns=DnsSettings(), egress=EgressSettings(default="deny", allow=(rule,)))
    assert forwards(named, own("10.0.0.1")) is expected
    assert not forwards(replace(named, dns=DnsSettings(forward=False)), own("10.0.0.1"))


def test_the_servers_are_those_of_the_operator_or_the_relays_own(spec: EnclaveSpec) -> None:
    assert upstreams(replace(spec, dns=DnsSettings()), own("10.0.0.1")) == addresses("10.0.0.1")
    named = replace(spec, dns=DnsSettings(servers=addresses("10.0.0.2")))
    assert upstreams(named, own("10.0.0.1")) == addresses("10.0.0.2")


@pytest.fixture
def wanted(spec: EnclaveSpec) -> EnclaveSpec:
    """A relay that forwards to the servers in its own resolv.conf."""
    return replace(spec, dns=DnsSettings(forward=True))


@contextmanager
def service(*servers: str) -> Iterator[tuple[MemoryMachine, NameService]]:
    machine = MemoryMachine()
    machine.resolver_settings = own(*servers)
    names = NameService(machine)
    yield machine, names
    names.close()


@without_waiting
async def test_it_answers_at_the_gateways_what_the_own_servers_say(wanted: EnclaveSpec) -> None:
    with service("10.0.0.1") as (machine, names):
        names.follow(wanted, GATEWAYS)
        snapshot = names.snapshot()
        assert snapshot is not None
        assert snapshot.listen == GATEWAYS
        assert snapshot.servers == addresses("10.0.0.1")
        assert machine.dns.listening.keys() == set(GATEWAYS)
        assert machine.dns.interfaces == {"wg0"}


@without_waiting
async def test_another_resolv_conf_changes_whom_it_asks_and_nothing_else(
    wanted: EnclaveSpec, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with service("10.0.0.1") as (machine, names):
        names.follow(wanted, GATEWAYS)
        ports = dict(machine.dns.listening)
        machine.resolver_settings = own("10.0.0.2", "127.0.0.1")
        names.follow(wanted, GATEWAYS)
        names.follow(wanted, GATEWAYS)
        snapshot = names.snapshot()
        assert snapshot is not None
        assert snapshot.servers == addresses("10.0.0.2", "127.0.0.1")
        assert machine.dns.listening == ports
        assert len(caplog.messages) == 2


@without_waiting
async def test_other_addresses_are_bound_in_place_of_the_first(wanted: EnclaveSpec) -> None:
    with service("10.0.0.1") as (_, names):
        names.follow(wanted, GATEWAYS)
        names.follow(wanted, addresses("10.74.0.1"))
        snapshot = names.snapshot()
        assert snapshot is not None
        assert snapshot.listen == addresses("10.74.0.1")
        assert snapshot.servers == addresses("10.0.0.1")


@without_waiting
async def test_it_begins_and_ends_with_the_stub(spec: EnclaveSpec) -> None:
    by_default = replace(spec, dns=DnsSettings())
    with service("10.0.0.1") as (machine, names):
        names.follow(by_default, GATEWAYS)
        assert names.snapshot() is None
        machine.resolver_settings = own("127.0.0.11")
        names.follow(by_default, GATEWAYS)
        assert names.snapshot() is not None
        machine.resolver_settings = own("10.0.0.1")
        names.follow(by_default, GATEWAYS)
        assert names.snapshot() is None


@without_waiting
async def test_what_cannot_be_bound_is_tried_again_by_the_next_look(wanted: EnclaveSpec) -> None:
    with service("10.0.0.1") as (machine, names):
        machine.dns.refuses = True
        with pytest.raises(ListenError):
            names.follow(wanted, GATEWAYS)
        assert names.snapshot() is None
        machine.dns.refuses = False
        names.follow(wanted, GATEWAYS)
        assert names.snapshot() is not None


@without_waiting
async def test_a_resolv_conf_that_cannot_be_read_leaves_it_as_it_is(
    wanted: EnclaveSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with service("10.0.0.1") as (machine, names):
        names.follow(wanted, GATEWAYS)

        def unreadable() -> ResolverSettings:
            raise ResolverError("cannot read /etc/resolv.conf")

        monkeypatch.setattr(machine, "resolver", unreadable)
        with pytest.raises(ResolverError):
            names.follow(wanted, GATEWAYS)
        snapshot = names.snapshot()
        assert snapshot is not None
        assert snapshot.servers == addresses("10.0.0.1")


def test_what_forwards_nothing_reads_no_dns_messages() -> None:
    """dnspython takes a tenth of a second to import, and an enclave's image may lack it."""
    script = (
        "import sys, wgvsock.relay.service, wgvsock.machine.relay\n"
        "import wgvsock.enclave.supervisor, wgvsock.machine.enclave\n"
        "print([name for name in sys.modules if name == 'dns' or name.startswith('dns.')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
