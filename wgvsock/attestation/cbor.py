"""A strict reader of CBOR (RFC 8949) for bytes from elsewhere.

cbor2 decodes well, but it decodes more than a security protocol should take: it ignores what follows the first item,
and accepts tags, floats and integers in more than one length. So the bytes are walked once here, and only a single item
of the restricted language below reaches cbor2:

* definite lengths, and every head in its shortest form (RFC 8949, section 4.2.1, without the order of map keys);
* integers, byte strings, text strings, arrays, maps, false, true and null; no tags, floats or other simple values;
* map keys are integers or text, and occur once;
* bounded nesting; nothing before, nothing behind.
"""

from __future__ import annotations

from typing import Final, TypeAlias, cast

import cbor2

from wgvsock.attestation.errors import CborError

CborValue: TypeAlias = "int | bytes | str | bool | list[CborValue] | dict[int | str, CborValue] | None"

DEFAULT_MAX_DEPTH: Final = 4
"""Containers inside one another; the deepest message of ours (a list of texts in a configuration) needs three."""

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)  # RFC 8949, section 3.1
_KEY_TYPES: Final = (_UNSIGNED, _NEGATIVE, _TEXT)
_SIMPLE_VALUES: Final = (20, 21, 22)  # false, true, null (RFC 8949, section 3.3)


def strict_loads(data: bytes | memoryview, *, max_depth: int = DEFAULT_MAX_DEPTH) -> CborValue:
    """Decode exactly one item; the caller has already bounded the length of `data`.

    Args:
        data: The encoded item and nothing else.
        max_depth: How many containers may stand inside one another: 0 a scalar, 1 a flat array or map, …

    Raises:
        CborError: The bytes are not one item of the language in this module's docstring.
    """
    end = _walk(data, 0, max_depth)
    if end != len(data):
        raise CborError("cannot read CBOR", why=f"{len(data) - end} bytes follow the item")
    try:
        # Left to cbor2: text is UTF-8, keys of a map are distinct.
        return cast("CborValue", cbor2.loads(data, allow_duplicate_keys=False))
    except cbor2.CBORDecodeError:
        raise CborError("cannot read CBOR", why="a key occurs twice in a map, or a text is not UTF-8") from None


def _walk(data: bytes | memoryview, position: int, depth: int) -> int:
    """Check the item that starts at `position`; returns where the next one starts."""
    major, argument, position = _head(data, position)
    if major in {_BYTES, _TEXT}:
        if argument > len(data) - position:
            raise CborError("cannot read CBOR", why="a string is longer than the message")
        return position + argument
    if major in {_ARRAY, _MAP}:
        if depth == 0:
            raise CborError("cannot read CBOR", why="arrays or maps are nested too deeply")
        for _ in range(argument):  # A huge count ends where the bytes end: every item takes at least one.
            if major == _MAP:
                if position < len(data) and data[position] >> 5 not in _KEY_TYPES:
                    raise CborError("cannot read CBOR", why="a map key is neither an integer nor text")
                position = _walk(data, position, depth - 1)
            position = _walk(data, position, depth - 1)
    return position


def _head(data: bytes | memoryview, position: int) -> tuple[int, int, int]:
    """Read one head (RFC 8949, section 3): major type, argument, position behind it."""
    if position >= len(data):
        raise CborError("cannot read CBOR", why="the message ends too early")
    major, argument = data[position] >> 5, data[position] & 0x1F
    position += 1
    if major == _TAG or (major == _SIMPLE and argument not in _SIMPLE_VALUES):
        raise CborError(
            "cannot read CBOR", why="tags, floats and simple values other than true, false, null are refused"
        )
    if major == _SIMPLE or argument < 24:
        return major, argument, position
    if argument > 27:
        raise CborError("cannot read CBOR", why="an item has an indefinite length or a reserved head")
    size = 1 << (argument - 24)  # 1, 2, 4 or 8 bytes, big-endian
    if size > len(data) - position:
        raise CborError("cannot read CBOR", why="the message ends too early")
    argument = int.from_bytes(data[position : position + size], "big")
    if argument < (24 if size == 1 else 1 << (size * 4)):
        raise CborError("cannot read CBOR", why="an integer or a length is not in its shortest form")
    return major, argument, position + size
