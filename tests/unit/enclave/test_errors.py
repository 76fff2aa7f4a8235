"""Codes and exit codes of the agent's errors."""

from __future__ import annotations

from wgvsock.enclave.errors import ApplicationError, DocumentError, KeyCommitmentError


def test_each_has_its_code_and_exit_status() -> None:
    assert (KeyCommitmentError.code, KeyCommitmentError.exit_code) == ("WGV-E085", 7)
    assert (ApplicationError.code, ApplicationError.exit_code) == ("WGV-E086", 2)
    assert (DocumentError.code, DocumentError("x", status=429).status) == ("WGV-E059", 429)
