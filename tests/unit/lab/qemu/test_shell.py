from __future__ import annotations

from pathlib import Path

import pytest

from lab.deadline import Deadline
from lab.qemu.errors import GuestError
from lab.qemu.shell import _reserved


def test_the_port_is_one_commands_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "shell.lock"
    with _reserved(path, Deadline(1)), pytest.raises(GuestError, match="in use"), _reserved(path, Deadline(0)):
        pytest.fail("two at once")
    with _reserved(path, Deadline(0)):
        assert path.exists()
