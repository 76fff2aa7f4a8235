import pytest

from wgvsock.devices.errors import TunForbiddenError, TunGoneError, TunMissingError
from wgvsock.errors import SystemSetupError


@pytest.mark.parametrize("kind", [TunMissingError, TunForbiddenError, TunGoneError])
def test_a_missing_prerequisite_exits_7(kind: type[SystemSetupError]) -> None:
    assert issubclass(kind, SystemSetupError)
    assert kind.exit_code == 7
