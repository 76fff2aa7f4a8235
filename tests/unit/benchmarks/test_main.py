"""The contestants follow from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks.limit.contestants import limits
from benchmarks.report import LIMIT, OURS, OURS_COMPILED, OURS_PLAIN, OURS_USERSPACE, RIVAL, Results
from benchmarks.systems import System
from wgvsock.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """wireguard-go and one proxy, whatever this machine has."""
    monkeypatch.setattr(bench, "wireguard_go", lambda: Path("/bin/true"))
    monkeypatch.setattr(bench, "version", lambda _: "1")
    monkeypatch.setattr(bench, "proxies", lambda: ([System("socat", lambda _: [], tcp_only=True)], {"pasta": "absent"}))


def competing(*words: str) -> tuple[list[str], dict[str, str]]:
    results = Results()
    systems = bench.contestants(bench.parse_arguments(words), results)
    return [system.name for system in systems], results.skipped


def test_a_run_has_everything_that_is_here_and_the_limits() -> None:
    names, skipped = competing()
    assert names == [OURS, OURS_PLAIN, OURS_USERSPACE, RIVAL, *(limit.name for limit in limits()), "socat", "no tunnel"]
    assert LIMIT in names
    assert skipped == {"pasta": "absent"}


def test_a_quick_run_has_what_decides_and_who_was_asked_for() -> None:
    names, _ = competing("--quick", "--peer", "theirs=/bin/true")
    assert names == [OURS, OURS_PLAIN, RIVAL, "theirs", LIMIT, "no tunnel"]


def test_the_compiled_build_comes_beside_the_pure_one() -> None:
    names, _ = competing("--quick", "--compiled", "built")
    assert names[:2] == [OURS, OURS_COMPILED]


def test_variants_come_where_they_are_asked_for() -> None:
    variants = [system.name for system in bench.variants(None)]
    assert set(variants) <= set(competing("--variants")[0])
    assert competing("--only", variants[-1])[0] == [variants[-1]]
    assert bench.variants(None)[-1].mtu == bench.JUMBO_MTU


def test_a_name_that_no_contestant_has_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no contestant is called 'gvproxi', 'x'") as refused:
        competing("--only", OURS, "--only", "x", "--only", "gvproxi")
    assert OURS in refused.value.fix


def test_only_says_of_those_alone_what_is_missing() -> None:
    assert competing("--only", OURS) == ([OURS], {})
    assert competing("--only", "pasta") == ([], {"pasta": "absent"})
