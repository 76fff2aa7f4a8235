"""One enclave's specification: its names, its successor's, and what two cannot share."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wgvsock import settings
from wgvsock.egress.settings import EgressSettings
from wgvsock.errors import ConfigurationError
from wgvsock.relay.config import RelayConfig
from wgvsock.relay.sections import LaunchSettings, PublishSettings
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.settings import InvalidSettingError

PCRS = "\n".join(f'pcr{index} = "{str(index + 1) * 96}"' for index in (0, 1, 2))
POLICY = f"[[attestation.pcr_sets]]\n{PCRS}\n"


def parse(text: str) -> RelayConfig:
    return settings.parse(RelayConfig, text, "relay.toml")


def several(*entries: str) -> RelayConfig:
    return parse(POLICY + "".join(f"[[enclaves]]\n{entry}\n" for entry in entries))


ONE = 'name = "one"\naddress = "vsock:16:51820"'
TWO = 'name = "two"\naddress = "vsock:17:51820"'


@pytest.fixture
def only() -> EnclaveSpec:
    (spec,) = parse('[enclave]\naddress = "vsock:16:51820"\n' + POLICY).specs()
    return spec


def test_the_short_form_keeps_its_names(only: EnclaveSpec) -> None:
    assert (only.owner, only.launch_name, only.interface.name) == ("relay", "wgvsock", "wg0")
    assert list(map(str, only.enclave.addresses)) == ["198.18.73.3/31", "fddc:7f99:d74c::3/127"]


def test_without_ipv6_the_link_is_ipv4_s(only: EnclaveSpec) -> None:
    without = only.without_ipv6()
    assert list(map(str, without.enclave.addresses)) == ["198.18.73.3/31"]
    assert list(map(str, without.interface.addresses)) == ["198.18.73.2/31"]
    assert only.successor(4).without_ipv6().enclave.addresses == only.successor(4).enclave.addresses[:1]
    theirs = replace(only, enclave=replace(only.enclave, addresses=only.successor(4).enclave.addresses))
    assert theirs.without_ipv6() is theirs  # the operator's own


def test_each_of_several_has_names_a_link_and_an_interface() -> None:
    one, two = several(ONE, TWO).specs()
    assert (one.owner, two.owner) == ("relay/one", "relay/two")
    assert (one.launch_name, two.launch_name) == ("relay-one", "relay-two")
    assert (one.interface.name, two.interface.name) == ("wg0", "wg1")
    assert [str(spec.enclave.addresses[0]) for spec in (one, two)] == ["198.18.73.3/31", "198.18.73.5/31"]


def test_an_enclave_that_is_served_keeps_its_place() -> None:
    two, three = several(TWO, 'name = "three"\naddress = "vsock:18:1"').specs({"two": 1, "three": 0})
    assert (two.interface.name, three.interface.name) == ("wg1", "wg0")


def test_an_interface_that_is_named_is_not_given_out() -> None:
    one, two = several(ONE + '\ninterface = "wg0"', TWO).specs()
    assert (one.interface.name, two.interface.name) == ("wg0", "wg2")


def test_what_is_left_out_is_the_relay_s() -> None:
    policy = f"[enclaves.attestation]\n[[enclaves.attestation.pcr_sets]]\n{PCRS.replace('33', 'ab')}\n"
    extra = policy + "[enclaves.dns]\nsearch = ['x.test']"
    config = several(ONE + '\nsigning_key_file = "/k"', TWO + "\n" + extra)
    one, two = config.specs()
    assert one.attestation == config.attestation
    assert two.attestation != config.attestation
    assert (one.dns, two.dns.search) == (config.dns, ("x.test",))
    assert (one.provisioning.signing_key_file, two.provisioning.signing_key_file) == ("/k", None)


PUBLISH = '\n[[enclaves.publish]]\nprotocol = "tcp"\nport = 443'
LAUNCH = '\nlaunch = { image = "/a.eif", name = "x" }'


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ((ONE, ONE.replace("16", "17")), "cannot share a name"),
        ((ONE, TWO.replace("17", "16")), "cannot share vsock:16:51820"),
        ((ONE + '\ninterface = "wg5"', TWO + '\ninterface = "wg5"'), "cannot share the interface wg5"),
        ((ONE + PUBLISH, TWO + PUBLISH), "cannot share the published tcp port 443"),
        ((ONE + LAUNCH, TWO + LAUNCH), "cannot share the name x"),
        (
            (
                ONE + '\naddresses = ["10.9.0.2/24"]\nrelay_addresses = ["10.9.0.1/24"]',
                TWO + '\naddresses = ["10.9.0.3/24"]\nrelay_addresses = ["10.9.0.1/24"]',
            ),
            "cannot share the prefix 10.9.0.0/24",
        ),
        ((ONE + '\naddresses = ["10.9.0.2/24"]',), "cannot use the tunnel's addresses"),
        (('name = "enclave"\naddress = "vsock:16:1"',), 'no enclave can be named "enclave"'),
        (('name = "a/b"\naddress = "vsock:16:1"',), 'cannot use "name"'),
        (('name = "one"',), "no enclave is configured"),
    ],
)
def test_what_two_cannot_have_both(entries: tuple[str, ...], why: str) -> None:
    with pytest.raises(InvalidSettingError, match=r"relay\.toml, line \d+: ") as caught:
        several(*entries)
    assert why in caught.value.what


@pytest.mark.parametrize(
    "short",
    ['[enclave]\naddress = "vsock:9:9"', '[launch]\nimage = "/a"', '[interface]\nname = "wg9"',
     '[interface]\naddresses = ["10.0.0.1/8"]', '[[nat.publish]]\nprotocol = "tcp"\nport = 1'],
)  # fmt: skip
def test_the_two_forms_do_not_mix(short: str) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot use .* beside \[\[enclaves\]\]"):
        parse(f"{POLICY}[[enclaves]]\n{ONE}\n{short}\n")


def test_every_enclave_needs_a_policy() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(f"[[enclaves]]\n{ONE}\n")
    assert "which enclaves are accepted" in caught.value.why


def test_too_many_enclaves() -> None:
    entries = [f'name = "e{number}"\naddress = "vsock:{number}:1"' for number in range(10, 74)]
    assert len(several(*entries[:63]).specs()) == 63
    with pytest.raises(ConfigurationError, match="so many enclaves"):
        several(*entries)


def test_a_successor_shares_nothing_that_both_would_need(only: EnclaveSpec) -> None:
    successor = only.successor(4)
    assert (successor.owner, successor.launch_name, successor.interface.name) == ("relay/enclave/2", "wgvsock-2", "wg4")
    assert not set(successor.enclave.addresses) & set(only.enclave.addresses)
    assert successor.name == only.name


def test_the_second_successor_is_where_the_operator_wanted_it(only: EnclaveSpec) -> None:
    """A restarted Relay looks there for it."""
    configured = replace(only, interface=replace(only.interface, name="tunnel"))
    moved = configured.successor(4)
    assert moved.places == {4, 0}  # nobody else gets its home meanwhile
    assert moved.successor(0) == configured
    reloaded = replace(configured, dns=replace(only.dns, search=("new.test",)))
    assert reloaded.in_place_of(moved).successor(0) == reloaded


def test_one_that_has_moved_stays_where_it_is(only: EnclaveSpec) -> None:
    running = only.successor(4)
    wanted = replace(only, dns=replace(only.dns, search=("new.test",)))
    merged = wanted.in_place_of(running)
    assert (merged.interface, merged.enclave, merged.owner) == (running.interface, running.enclave, running.owner)
    assert merged.dns.search == ("new.test",)
    assert running.restart_needed_for(merged) is None
    assert wanted.in_place_of(only) == wanted


@pytest.mark.parametrize("moved", [False, True])
def test_what_a_configuration_changes_is_followed_without_image_ports_and_place(only: EnclaveSpec, moved: bool) -> None:
    known = replace(only, launch=LaunchSettings("/b.eif"), dns=replace(only.dns, search=("new.test",)))
    running = replace(only.successor(4) if moved else only, draining=True)
    assert running.following(known, known) == running  # what the image needs is the other enclave's
    ports = (PublishSettings("tcp", 443),)
    new = replace(
        known,
        launch=LaunchSettings("/c.eif"),
        nat=replace(known.nat, publish=ports, masquerade=False),
        egress=EgressSettings("deny"),
    )
    nat = replace(only.nat, masquerade=False)
    assert running.following(known, new) == replace(running, nat=nat, egress=EgressSettings("deny"))


def test_an_interface_that_the_operator_named_is_no_successor_s(only: EnclaveSpec) -> None:
    named = replace(only, interface=replace(only.interface, name="wg1"))
    assert (only.places, named.places) == ({0}, {0, 1})
    assert replace(only, interface=replace(only.interface, name="tunnel")).places == {0}
