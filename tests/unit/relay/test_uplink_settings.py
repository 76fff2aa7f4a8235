"""``[uplink]``."""

from __future__ import annotations

import pytest

from wgvsock.errors import ConfigurationError
from wgvsock.relay.uplink_settings import UplinkSettings
from wgvsock.settings import parse


def test_the_kernel_is_the_default() -> None:
    assert parse(UplinkSettings, "") == UplinkSettings("kernel", 4096)
    assert parse(UplinkSettings, 'mode = "auto"\nmax_connections = 100') == UplinkSettings("auto", 100)


@pytest.mark.parametrize("text", ['mode = "user"', "max_connections = 15", "max_connections = 60001"])
def test_what_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse(UplinkSettings, text)
