"""Every error code, the product's and the laboratory's, has a single meaning and a row in docs/errors.md."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import lab
import wgvsock
from wgvsock.errors import WgvsockError

ROOT = Path(__file__).resolve().parents[2]


def _subclasses(kind: type[WgvsockError]) -> Iterator[type[WgvsockError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _subclasses(child)


def _all_errors() -> set[type[WgvsockError]]:
    for package in (wgvsock, lab):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    return {kind for kind in _subclasses(WgvsockError) if kind.__module__.startswith(("wgvsock.", "lab."))}


def test_every_code_is_documented_and_no_other() -> None:
    used = {(kind.code, kind.exit_code) for kind in _all_errors()}
    table = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (WGV-E\d{3}) \| (\d+) \|", table, re.MULTILINE)
    documented = [(code, int(exit_code)) for code, exit_code in rows]
    assert sorted(used) == sorted(documented)


def test_a_code_means_one_thing() -> None:
    # A subclass may share its parent's code (the attestation checks do); strangers may not share one.
    owners: dict[str, type[WgvsockError]] = {}
    for kind in sorted(_all_errors(), key=lambda kind: len(kind.__mro__)):
        owner = owners.setdefault(kind.code, kind)
        assert issubclass(kind, owner), f"{kind.__name__} and {owner.__name__} share {kind.code}"
