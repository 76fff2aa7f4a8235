from __future__ import annotations

import pytest

from wgvsock.settings import Advice


def test_the_same_advice_is_the_same() -> None:
    one = Advice(("egress", "allow", 0), "it does nothing", "it is twice there", "remove it")
    assert len({one, Advice(("egress", "allow", 0), "it does nothing", "it is twice there", "remove it")}) == 1
    with pytest.raises(AttributeError):
        one.why = "another"  # type: ignore[misc]
