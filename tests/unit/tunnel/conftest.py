from collections.abc import Iterator

import pytest

from tests.unit.tunnel.queued import Reader


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    made.tun.close()
