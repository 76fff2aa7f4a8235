from __future__ import annotations

import pytest

from lab import backends
from lab.errors import LabError, LabUnavailableError, Unavailable


class Backend:
    reason: Unavailable | None = None

    @classmethod
    def unavailable(cls) -> Unavailable | None:
        return cls.reason


class Missing(Backend):
    reason = Unavailable("missing", "/dev/thing", "load it")


class Forbidden(Backend):
    reason = Unavailable("forbidden", "the right", "be root")


def offer(monkeypatch: pytest.MonkeyPatch, **offered: type[Backend]) -> None:
    monkeypatch.setattr(backends, "BACKENDS", offered)
    monkeypatch.setattr(backends, "PREFERENCE", tuple(offered))


def test_the_best_that_runs_is_chosen_and_the_better_ones_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, best=Missing, good=Backend, plain=Backend)
    assert backends.choose() == ("good", "the best that runs here; best is missing: /dev/thing (load it)")


def test_a_name_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, best=Backend, plain=Backend)
    assert backends.choose("plain") == ("plain", "as asked")


def test_a_name_that_cannot_run_is_an_error_that_tells_missing_from_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, best=Backend, other=Forbidden)
    with pytest.raises(LabUnavailableError, match=r"other is forbidden: the right \(be root\)"):
        backends.choose("other")


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(LabError) as caught:
        backends.choose("marble")
    assert "netns" in caught.value.fix
