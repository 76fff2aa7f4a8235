"""The output of nft and iptables-save about rules that judge, as nft 1.0.6 and iptables 1.8.9 write it."""

from __future__ import annotations

# ruff: noqa: E101 - as nft indents
from ipaddress import ip_address

from wgvsock.system.filter.egress_listing import Denied, iptables_counts, nft_counts, nft_denied, nft_pins
from wgvsock.system.filter.rules import HeldPin

LISTING = """\
table inet wgvsock-relay {
	set allow_1_v4 {
		type ipv4_addr
		size 8192
		flags timeout
		elements = { 203.0.113.10 timeout 90s expires 55s,
			     203.0.113.11 timeout 1m30s expires 1m5s500ms comment "pinned www.lab.test",
			     203.0.113.999 timeout 90s expires 55s comment "pinned www.lab.test",
			     203.0.113.12 timeout 90s expires 55s comment "somebody's" }
	}

	set denied_v4 {
		type ipv4_addr . inet_proto . inet_service
		size 1024
		flags dynamic,timeout
		timeout 300s
		elements = { 203.0.113.1 . 6 . 443 counter packets 2 bytes 120 expires 297s,
			     203.0.113.2 . udp . 53 counter packets 1 bytes 60 timeout 5m expires 4m59s996ms,
			     203.0.113.3 . somewhat . 53 counter packets 1 bytes 60 expires 1s }
	}

	set denied_portless_v6 {
		type ipv6_addr . inet_proto
		size 1024
		flags dynamic,timeout
		timeout 300s
		elements = { 2001:db8::1 . ipv6-icmp counter packets 7 bytes 700 expires 1m }
	}

	set denied_v6 {
		type ipv6_addr . inet_proto . inet_service
		size 1024
	}

	chain egress {
		meta l4proto 6 ct original ip daddr @allow_1_v4 counter packets 3 bytes 180 goto admit comment "allow 1"
		meta l4proto 6 ct original ip6 daddr @allow_1_v6 counter packets 4 bytes 320 goto admit comment "allow 1"
		counter packets 9 bytes 540 goto deny comment "default"
	}

	chain errors {
		counter packets 5 bytes 300 drop comment "errors about flows of others"
	}

	chain before {
		counter packets 0 bytes 0 comment "before ipv4_forwarding eth0 0/0"
	}
}
"""


def test_what_is_pinned_has_its_name_and_the_time_that_is_left() -> None:
    assert list(nft_pins(LISTING)) == [HeldPin("www.lab.test", ip_address("203.0.113.11"), 65.5)]


def test_packets_of_rules_with_one_comment_are_one_count() -> None:
    assert nft_counts(LISTING) == {"allow 1": 7, "default": 9, "errors about flows of others": 5}


def test_destinations_by_set() -> None:
    found = nft_denied(LISTING)
    assert found["denied_v4"] == (
        Denied(ip_address("203.0.113.1"), 6, 443, 2, 3.0),
        Denied(ip_address("203.0.113.2"), 17, 53, 1, 300 - 299.996),
    )
    assert found["denied_portless_v6"] == (Denied(ip_address("2001:db8::1"), 58, 0, 7, 240.0),)
    assert found["denied_v6"] == ()
    assert "allow_1_v4" not in found
    assert nft_denied("") == {}


SAVED = """\
*filter
:WGVSOCK-relay-EGR - [0:0]
[3:180] -A WGVSOCK-relay-EGR -p tcp -m conntrack --ctorigdst 10.20.0.0/16 -m comment --comment "allow 1" -g X
[1:60] -A WGVSOCK-relay-HERE -m comment --comment "allow 1" -g X
[9:540] -A WGVSOCK-relay-EGR -m comment --comment default -g WGVSOCK-relay-DENY
[8:480] -A WGVSOCK-other-EGR -m comment --comment default -g WGVSOCK-other-DENY
COMMIT
"""


def test_packets_in_our_chains_of_iptables() -> None:
    assert iptables_counts(SAVED, ("WGVSOCK-relay-EGR", "WGVSOCK-relay-HERE")) == {"allow 1": 4, "default": 9}
