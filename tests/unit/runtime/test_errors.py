"""Exit codes and codes of the errors around a process's own state."""

from __future__ import annotations

from wgvsock.errors import SystemSetupError
from wgvsock.runtime import errors


def test_each_class_has_its_code() -> None:
    classes = [kind for kind in SystemSetupError.__subclasses__() if kind.__module__ == errors.__name__]
    assert len({kind.code for kind in classes}) == len(classes) == 2
    assert (errors.JournalError.exit_code, errors.AlreadyRunningError.exit_code) == (7, 1)
