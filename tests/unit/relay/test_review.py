"""What a valid relay.toml may not mean as its operator thinks."""

from __future__ import annotations

from wgvsock import settings
from wgvsock.relay.config import RelayConfig
from wgvsock.relay.review import advise, advise_without_nft

POLICY = """
[[attestation.pcr_sets]]
pcr0 = "{0}"
pcr1 = "{0}"
pcr2 = "{0}"
""".format("ab" * 48)
ONE = '[enclave]\naddress = "vsock:16:51820"\n'
CLOSED = '[egress]\ndefault = "deny"\n'


def parse(text: str) -> RelayConfig:
    return settings.parse(RelayConfig, text + POLICY)


def advice(text: str) -> list[tuple[settings.KeyPath, str]]:
    return [(each.key, each.why) for each in advise(parse(text))]


def test_a_policy_that_denies_and_needs_every_rule() -> None:
    assert advice(ONE + CLOSED + '[[egress.allow]]\nname = "www.lab.test"\nports = [443]\n') == []


def test_an_open_policy_is_told_of_until_something_is_denied() -> None:
    ((key, why),) = advice(ONE)
    assert key == ("egress", "default")
    assert "NetworkPolicy" in why
    assert advice(ONE + '[[egress.deny]]\nnetwork = "10.0.0.0/8"\n') == []


def test_rules_that_do_nothing() -> None:
    rules = '[[egress.allow]]\nnetwork = "10.0.0.0/8"\n[[egress.allow]]\nnetwork = "10.1.0.0/16"\n'
    ((key, why),) = advice(ONE + CLOSED + rules)
    assert key == ("egress", "allow", 1)
    assert "it never matches" in why


def test_names_without_a_forwarder() -> None:
    names = CLOSED + '[[egress.allow]]\nname = "www.lab.test"\n'
    ((key, why),) = advice(ONE + names + "[dns]\nforward = false\n")
    assert key == ("dns", "forward")
    assert "does not learn" in why
    assert advice(ONE + names + "[dns]\nforward = true\n") == []
    assert advice(ONE + CLOSED + "[dns]\nforward = false\n") == []


def test_the_relay_s_own_tunnel_address_is_no_network() -> None:
    rule = '[[egress.allow]]\nnetwork = "198.18.73.2/32"\n'
    ((key, why),) = advice(ONE + CLOSED + rule)
    assert key == ("egress", "allow", 0)
    assert "relay's own machine" in why


def test_a_network_that_no_route_leads_to() -> None:
    routes = 'routes = ["10.0.0.0/8", "2001:db8::/32"]\n'
    ((key, why),) = advice(ONE + routes + CLOSED + '[[egress.allow]]\nnetwork = "192.0.2.0/24"\n')
    assert key == ("egress", "allow", 0)
    assert '"routes"' in why
    for network in ("10.1.0.0/16", "0.0.0.0/0", "2001:db8::/48"):
        assert advice(ONE + routes + CLOSED + f'[[egress.allow]]\nnetwork = "{network}"\n') == []


def test_of_several_enclaves_each_by_its_own_table_and_a_common_one_once() -> None:
    text = """
        [egress]
        [[enclaves]]
        name = "wallet"
        address = "vsock:16:51820"
        [[enclaves]]
        name = "vault"
        address = "vsock:17:51820"
        [enclaves.dns]
        forward = false
        [enclaves.egress]
        default = "deny"
        allow = [{name = "a.test"}, {name = "a.test"}]
        [[enclaves]]
        name = "third"
        address = "vsock:18:51820"
    """
    assert [key for key, _ in advice(text)] == [
        ("egress", "default"),
        ("enclaves", 1, "egress", "allow", 1),
        ("enclaves", 1, "dns", "forward"),
    ]


def test_names_where_there_is_iptables_alone() -> None:
    (found,) = advise_without_nft(parse(ONE + CLOSED + '[[egress.allow]]\nname = "www.lab.test"\n'))
    assert found.key == ("egress",)
    assert advise_without_nft(parse(ONE)) == ()
