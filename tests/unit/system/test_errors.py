"""Exit codes and codes of the set-up errors."""

from __future__ import annotations

from wgvsock.errors import SystemSetupError
from wgvsock.system import errors


def test_each_class_has_its_code_and_asks_for_a_prerequisite() -> None:
    classes = [kind for kind in SystemSetupError.__subclasses__() if kind.__module__ == errors.__name__]
    assert len({kind.code for kind in classes}) == len(classes) == 4
    assert {kind.exit_code for kind in classes} == {7}
