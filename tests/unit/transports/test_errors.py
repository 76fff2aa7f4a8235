import pytest

from wgvsock.errors import TransportError
from wgvsock.transports.errors import ConnectError, ListenError, VsockUnavailableError


@pytest.mark.parametrize(("kind", "exit_code"), [(VsockUnavailableError, 7), (ListenError, 7), (ConnectError, 6)])
def test_exit_code_tells_a_missing_prerequisite_from_an_unreachable_remote(
    kind: type[TransportError], exit_code: int
) -> None:
    assert issubclass(kind, TransportError)
    assert kind.exit_code == exit_code
