from __future__ import annotations

from wgvsock.system.facts import Fact


def test_a_fact_says_what_was_before() -> None:
    assert str(Fact("ipv4_forwarding", "eth0", "0/1")) == "before ipv4_forwarding eth0 0/1"


def test_a_fact_fits_into_a_comment_of_nft() -> None:
    assert len(str(Fact("sysctl", "/proc/sys/net/ipv6/conf/a-name-of-15-ch/accept_ra", "2"))) <= 128
