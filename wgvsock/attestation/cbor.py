"""A strict reader of CBOR (RFC 8949) for untrusted bytes.

cbor2 decodes well, but it accepts more than a security protocol should: it ignores what follows the first item, and
accepts tags, floats and integers in more than one length. So the bytes are walked once here, and only a single item of
the restricted language below reaches cbor2:

* Lengths are definite, and every head has its shortest form (RFC 8949, section 4.2.1, without the order of map keys).
  Only the outermost map may have indefinite length, ``bf … ff`` (section 3.2.2), and only if the caller allows it.
* Items are integers, byte strings, text strings, arrays, maps, false, true and null. Tags, floats and other simple
  values are refused.
* Map keys are integers or text, and occur once.
* Nesting is bounded. Nothing precedes or follows the item.
"""

from __future__ import annotations

from typing import Final, TypeAlias, cast

import cbor2

from wgvsock.attestation.errors import CborError

CborValue: TypeAlias = "int | bytes | str | bool | list[CborValue] | dict[int | str, CborValue] | None"

DEFAULT_MAX_DEPTH: Final = 4
"""Levels of nested containers. Our deepest message (a list of texts in a configuration) needs three."""

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)  # RFC 8949, section 3.1
_KEY_TYPES: Final = (_UNSIGNED, _NEGATIVE, _TEXT)
_SIMPLE_VALUES: Final = (20, 21, 22)  # false, true, null (RFC 8949, section 3.3)
_OPEN_MAP: Final = 0xBF  # a map of indefinite length, which ends at the break (RFC 8949, section 3.2.2)
_BREAK: Final = 0xFF


def strict_loads(
    data: bytes | memoryview, *, max_depth: int = DEFAULT_MAX_DEPTH, may_be_open: bool = False
) -> CborValue:
    """Decode exactly one item. The caller has already bounded the length of `data`.

    Args:
        data: The encoded item and nothing else.
        max_depth: How many levels of containers may nest: 0 for a scalar, 1 for a flat array or map, and so on.
        may_be_open: Whether the item may be a map of indefinite length. Items inside it always have definite length.

    Raises:
        CborError: The bytes are not one item of the language in this module's docstring.
    """
    is_open = may_be_open and len(data) > 0 and data[0] == _OPEN_MAP
    end = _walk_open_map(data, max_depth) if is_open else _walk(data, 0, max_depth)
    if end != len(data):
        raise CborError("cannot read CBOR", why=f"{len(data) - end} bytes follow the item")
    try:
        # cbor2 checks the rest: text is UTF-8, and the keys of a map are distinct.
        return cast("CborValue", cbor2.loads(data, allow_duplicate_keys=False))
    except cbor2.CBORDecodeError:
        raise CborError("cannot read CBOR", why="a key occurs twice in a map, or a text is not UTF-8") from None


def _walk_open_map(data: bytes | memoryview, depth: int) -> int:
    """Check the open map at the start of `data`, and return the position after its break."""
    if depth == 0:
        raise CborError("cannot read CBOR", why="arrays or maps are nested too deeply")
    position = 1
    while position < len(data) and data[position] != _BREAK:
        position = _walk_entry(data, position, depth - 1)
    if position == len(data):
        raise CborError("cannot read CBOR", why="the message ends too early: an open map lacks its break")
    return position + 1


def _walk_entry(data: bytes | memoryview, position: int, depth: int) -> int:
    """Check the key and the value at `position`, and return the position of the next entry."""
    if position < len(data) and data[position] >> 5 not in _KEY_TYPES:
        raise CborError("cannot read CBOR", why="a map key is neither an integer nor text")
    return _walk(data, _walk(data, position, depth), depth)


def _walk(data: bytes | memoryview, position: int, depth: int) -> int:
    """Check the item at `position`, and return the position of the next one."""
    major, argument, position = _head(data, position)
    if major in {_BYTES, _TEXT}:
        if argument > len(data) - position:
            raise CborError("cannot read CBOR", why="a string is longer than the message")
        return position + argument
    if major in {_ARRAY, _MAP}:
        if depth == 0:
            raise CborError("cannot read CBOR", why="arrays or maps are nested too deeply")
        for _ in range(argument):  # A huge count fails at the end of the bytes: every item takes at least one.
            position = (_walk_entry if major == _MAP else _walk)(data, position, depth - 1)
    return position


def _head(data: bytes | memoryview, position: int) -> tuple[int, int, int]:
    """Read one head (RFC 8949, section 3): major type, argument, and the position after it."""
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
