from __future__ import annotations

from benchmarks import growth, growth_status
from wgvsock.relay.status import relay_status
from wgvsock.telemetry.status import metrics
from wgvsock.wireguard import DropReason


def test_the_gate_knows_each_flow_and_refuses_what_goes_elsewhere() -> None:
    judge = growth_status.gate()
    datagrams = [growth_status.datagram(number) for number in range(50)]
    assert all(judge.passes(packet, 1.0) for packet in datagrams)
    assert judge.snapshot().allowed == {"allow 1": 50}
    elsewhere = memoryview(bytearray(datagrams[0]))
    elsewhere[19] ^= 1
    assert not judge.passes(elsewhere, 1.0)


def test_a_scrape_tells_every_drop_of_every_enclave() -> None:
    told = metrics(relay_status(growth_status.relay_of(3, growth.device_with(1))))
    assert all(told.count(f'reason="{reason.value}"') == 3 for reason in DropReason)
    assert 'enclave="enclave2"' in told
