"""Arguments that the verbs of ``attest`` share. test_attest.py tests their meaning to each verb."""

from __future__ import annotations

import argparse
from datetime import timedelta
from pathlib import Path

import pytest

from wgvsock.cli.attest_arguments import add_policy, expected_pcrs
from wgvsock.errors import ConfigurationError

PCR = "ab" * 48


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_policy(parser)
    return parser.parse_args(arguments)


def test_pcrs_come_from_a_file_and_from_arguments(tmp_path: Path) -> None:
    path = tmp_path / "pcrs"
    path.write_text(f"PCR0={PCR}\n")
    assert expected_pcrs(parse("--pcrs", str(path), "--pcr", f"1={PCR}")) == dict.fromkeys((0, 1), bytes.fromhex(PCR))
    assert expected_pcrs(parse()) == {}


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "pcrs"
    path.write_bytes(b"\xff\xfe\xfd" * 100)
    for name in (str(path), str(tmp_path / "missing")):
        with pytest.raises(ConfigurationError):
            expected_pcrs(parse("--pcrs", name))


def test_ages() -> None:
    assert parse().max_age == timedelta(seconds=120)
    assert parse("--max-age", "5").max_age == timedelta(seconds=5)
    for wrong in ("-1", "x", "1e300"):
        with pytest.raises(SystemExit):
            parse("--max-age", wrong)
