from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.nsm.der import BIT_STRING, SEQUENCE, elements, encode


@given(st.lists(st.binary(max_size=400), max_size=6))
def test_elements_come_apart_as_they_were_put_together(contents: list[bytes]) -> None:
    encoded = [encode(BIT_STRING, content) for content in contents]
    assert elements(b"".join(encoded)) == encoded
    assert elements(encode(SEQUENCE, b"".join(encoded)), nested=True) == encoded


@pytest.mark.parametrize(
    ("size", "head"), [(0, "3000"), (127, "307f"), (128, "308180"), (255, "3081ff"), (256, "30820100")]
)
def test_lengths_are_in_their_shortest_form(size: int, head: str) -> None:
    assert encode(SEQUENCE, bytes(size)) == bytes.fromhex(head) + bytes(size)
