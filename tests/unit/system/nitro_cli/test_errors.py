"""The meaning of the tool's codes."""

from __future__ import annotations

import pytest

from wgvsock.system.nitro_cli import NitroCliError
from wgvsock.system.nitro_cli.errors import translate


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("E19", "/dev/nitro_enclaves"),
        ("E22", "CPU pool"),
        ("E26", "image needs"),
        ("E27", "huge pages"),
        ("E58", "name"),
    ],
)
def test_codes_are_translated(code: str, word: str) -> None:
    error = translate("launch", 39, f"[ {code} ] Prose.\nFailed connections: 1\n[ E39 ] More prose.\n")
    assert error.error_code == code
    assert word in error.why


def test_an_unknown_failure_keeps_its_exit_code() -> None:
    error = translate("launch", 101, "thread 'main' panicked")
    assert error.error_code == ""
    assert "101" in error.why


@pytest.mark.parametrize(
    ("codes", "only_symptoms"),
    [((), False), (("E36", "E39"), True), (("E36", "E27", "E39"), False), (("E27",), False)],
)
def test_symptoms_alone_name_no_cause(codes: tuple[str, ...], *, only_symptoms: bool) -> None:
    assert NitroCliError("cannot launch", codes=codes).only_symptoms is only_symptoms
