from typing import TYPE_CHECKING

import pytest

from wgvsock.devices import base
from wgvsock.devices.nsm import NsmDevice
from wgvsock.devices.tun import Tun
from wgvsock.testing import MemoryTun

if TYPE_CHECKING:  # the checker holds every signature against the seam

    def _seams(tun: Tun, memory: MemoryTun, nsm: NsmDevice) -> tuple[base.TunDevice, base.TunDevice, base.SecureModule]:
        return tun, memory, nsm


@pytest.mark.parametrize("tun", [Tun, MemoryTun])
def test_every_tun_has_the_verbs_of_the_seam(tun: type) -> None:
    verbs = {name for name in vars(base.TunDevice) if not name.startswith("_")}
    assert verbs - {"packet_headroom", "udp_segmentation"} <= set(dir(tun))
