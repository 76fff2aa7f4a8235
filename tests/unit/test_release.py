"""What the build wrote into the package, and nothing invented where it wrote nothing."""

from __future__ import annotations

import json
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from wgvsock import __version__
from wgvsock.release import Release, release

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_package_says_what_it_was_built_of(tmp_path: Path) -> None:
    stamp = tmp_path / "build.json"
    stamp.write_text(json.dumps({"commit": COMMIT, "build": "20260101T000000Z"}))
    assert release(stamp) == Release(__version__, COMMIT, "20260101T000000Z")


def test_a_checkout_knows_its_version_alone() -> None:
    assert release() == Release(__version__, None, None, release().compiled)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"commit": null}'])
def test_a_stamp_that_cannot_be_read_is_none(content: bytes, tmp_path: Path) -> None:
    stamp = tmp_path / "build.json"
    stamp.write_bytes(content)
    assert release(stamp) == Release(__version__)


def test_compiled_is_what_this_python_would_load(tmp_path: Path) -> None:
    stamp = tmp_path / "build.json"
    (tmp_path / "framing.cpython-22-m68k-linux-gnu.so").touch()  # another Python's
    assert not release(stamp).compiled
    release.cache_clear()
    (tmp_path / f"framing{EXTENSION_SUFFIXES[0]}").touch()
    assert release(stamp).compiled
