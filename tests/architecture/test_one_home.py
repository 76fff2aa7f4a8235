"""Facts that have one home in the code: they must not be repeated elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = ("wgvsock", "lab", "benchmarks")

APART = {
    ROOT / "lab/watch/opener.py",  # repeats the protocol on purpose: that both agree is a check of both
    ROOT / "lab/guest/sentinel.py",  # runs where there is no package of ours
}

# What may stand in one file only -> that file.
FACTS = {
    r"\"wgvsock/v1\"": "wgvsock/telemetry/schema.py",
    r"= \"/run/wgvsock\"": "wgvsock/runtime/directory.py",
    r"async def _?first_of": "wgvsock/runtime/tasks.py",
    r"/nsm/control\.sock|\"control\.sock\"": "lab/nsm/wire.py",
    r"/var/run/wireguard": "wgvsock/uapi/server.py",
    r"X25519PublicKey": "wgvsock/x25519.py",
    r"IPv4(?:Address|Interface|Network) \| \S*IPv6": "wgvsock/addresses.py",
}


def files(folders: Iterable[str]) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py") if path not in APART)


@pytest.mark.parametrize(("fact", "home"), FACTS.items(), ids=str)
def test_a_fact_has_one_home(fact: str, home: str) -> None:
    found = [path for path in files(CODE) if re.search(fact, path.read_text(encoding="utf-8"))]
    assert [str(path.relative_to(ROOT)) for path in found] == [home]
