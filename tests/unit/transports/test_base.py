from typing import TYPE_CHECKING

import pytest

from wgvsock.testing import MemoryTransport
from wgvsock.testing.transport import MemoryLink
from wgvsock.transports import base
from wgvsock.transports.link import StreamLink
from wgvsock.transports.stream import StreamTransport
from wgvsock.transports.udp import UdpTransport
from wgvsock.transports.udp_link import UdpLink

if TYPE_CHECKING:  # the checker holds every signature against the seam

    def _seams(
        stream_link: StreamLink, udp_link: UdpLink, memory_link: MemoryLink
    ) -> tuple[base.Link, base.Link, base.Link]:
        return stream_link, udp_link, memory_link

    def _transports(
        stream: StreamTransport, udp: UdpTransport, memory: MemoryTransport
    ) -> tuple[base.Transport, base.Transport, base.Transport]:
        return stream, udp, memory


def verbs(seam: type) -> set[str]:
    return {name for name in vars(seam) if not name.startswith("_")}


@pytest.mark.parametrize("link", [StreamLink, UdpLink, MemoryLink])
def test_every_link_has_the_verbs_of_the_seam(link: type) -> None:
    state = {"address", "writable", "authenticated"}  # attributes of instances, or properties
    assert verbs(base.Link) - state <= set(dir(link))


@pytest.mark.parametrize("transport", [StreamTransport, UdpTransport, MemoryTransport])
def test_every_transport_has_the_verbs_of_the_seam(transport: type) -> None:
    assert verbs(base.Transport) <= set(dir(transport))
