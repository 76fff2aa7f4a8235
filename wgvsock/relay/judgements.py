"""Records the verdict on every attestation document: keeps refused documents, and writes the audit if there is one.

Nothing here decides. An operator needs a refused document to find out why it was refused, but an enclave may send such
documents all day. Therefore only a few of each kind are kept. Their names say when, from which enclave and why, and
``wgvsock attest verify`` accepts these names. The audit has one line for every document, even if the same one is
refused repeatedly. Attempts back off, so this adds about one line in half a minute.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from wgvsock.attestation.errors import RejectedDocumentError
from wgvsock.attestation.evidence import Evidence
from wgvsock.attestation.verifier import AttestedEnclave
from wgvsock.errors import AttestationError
from wgvsock.relay.errors import AuditError
from wgvsock.runtime import private
from wgvsock.telemetry.logs import error_fields, fields
from wgvsock.telemetry.schema import SCHEMA

REFUSED: Final = "refused"
"""Directory in the runtime directory, with one directory for each relay."""

MAX_OF_A_KIND: Final = 4
"""Refused documents kept for one enclave and one check. Two show whether they differ. The oldest is deleted first."""

MAX_KEPT: Final = 64
"""Refused documents kept in all. At 12 KiB each, they take less than a megabyte of a file system in memory."""

AUDIT_TO_STDOUT: Final = "stdout"

_NAME: Final = re.compile(r"([0-9]{8}T[0-9]{6}\.[0-9]{3}Z)-[A-Za-z0-9._-]{1,120}\.cbor", re.ASCII)
_TIME: Final = "%Y%m%dT%H%M%S.%f"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A document that was refused.

    Attributes:
        time: When it was refused, in UTC.
        error: Which check failed, and why.
        evidence: The values in the document, next to the allowed ones.
        kept: Name of the file that holds the document; None if it was not kept.
    """

    time: datetime
    error: AttestationError
    evidence: Evidence
    kept: str | None


class Judgements:
    """The judgements of one relay.

    Args:
        directory: The relay's runtime directory.
        relay: The relay's name.
        audit: The path of a file, or ``stdout``; None for no audit.
        wall_clock: Returns Unix time in nanoseconds.
        show: Writes a line to standard output.
    """

    def __init__(
        self,
        directory: str,
        relay: str,
        audit: str | None,
        *,
        wall_clock: Callable[[], int],
        show: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._directory = Path(directory) / REFUSED / relay
        self._relay = relay
        self._audit = audit
        self._wall_clock = wall_clock
        self._show = show
        self._last: dict[str, Refusal] = {}  # by enclave

    def open(self) -> None:
        """Check that the audit can be written.

        Raises:
            AuditError: It cannot be written. A relay with an audit does not start without it.
        """
        if self._audit not in {None, AUDIT_TO_STDOUT}:
            self._append("")

    def accepted(self, enclave: str, attested: AttestedEnclave) -> None:
        """Record that an enclave passed every check."""
        self._record(enclave, "accepted", None, attested.module_id, attested.pcrs, policy=attested.matched, kept=None)

    def refused(self, enclave: str, error: RejectedDocumentError) -> Refusal:
        """Record that an enclave was refused. The details are logged unless they are those of its last document."""
        evidence = error.evidence or Evidence()
        before = self._last.get(enclave)
        now = self._now()
        # A refusal by a new policy has no document. In that case, the enclave's next document is kept.
        if before is not None and _is_same(before, error, evidence) and (before.kept or not evidence.document):
            refusal = Refusal(now, error, evidence, before.kept)
        else:
            refusal = Refusal(now, error, evidence, self._keep(enclave, error.check, now, evidence.document))
            _tell(enclave, refusal)
        self._last[enclave] = refusal
        kept = refusal.kept
        self._record(enclave, "refused", error, evidence.module_id, evidence.pcrs, policy=None, kept=kept)
        return refusal

    # Internals.

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._wall_clock() / 1e9, UTC)

    def _keep(self, enclave: str, check: str, now: datetime, document: bytes) -> str | None:
        if not document:
            return None
        kind = f"-{enclave}-{check}.cbor"
        name = f"{now.strftime(_TIME)[:-3]}Z{kind}"
        try:
            private.make_directory(self._directory.parent)
            private.make_directory(self._directory)
            names = sorted(path.name for path in self._directory.iterdir() if _NAME.fullmatch(path.name))
            same = [each for each in names if each[20:] == kind]
            for old in {*same[: max(0, len(same) + 1 - MAX_OF_A_KIND)], *names[: max(0, len(names) + 1 - MAX_KEPT)]}:
                (self._directory / old).unlink()
            private.write(self._directory / name, document)
        except OSError as error:
            extra = fields(enclave=enclave, why=private.why(error), directory=self._directory)
            _log.warning("a refused document could not be saved", extra=extra)
            return None
        return name

    def _record(
        self,
        enclave: str,
        outcome: str,
        error: RejectedDocumentError | None,
        module_id: str | None,
        pcrs: Any,
        *,
        policy: str | None,
        kept: str | None,
    ) -> None:
        if self._audit is None:
            return
        entry = {
            "schema": SCHEMA,
            "time": self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "relay": self._relay,
            "enclave": enclave,
            "outcome": outcome,
            "check": None if error is None else error.check,
            "why": None if error is None else error.why,
            "module_id": module_id,
            "pcrs": {f"PCR{index}": value.hex() for index, value in sorted(pcrs.items())},
            "policy": policy,
            "document": kept,
        }
        line = json.dumps(entry)
        if self._audit == AUDIT_TO_STDOUT:
            self._show(line)
            return
        try:
            self._append(line + "\n")
        except AuditError as failure:
            _log.error("%s", failure, extra=error_fields(failure, enclave=enclave))

    def _append(self, text: str) -> None:
        """Append to the file, which is opened anew each time: log rotation needs no signal to the relay."""
        path = Path(self._audit or "")
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(path, flags, 0o600), "ab", buffering=0) as file:
                file.write(text.encode())
        except OSError as error:
            raise AuditError(
                f"cannot write the audit to {path}",
                why=error.strerror or str(error),
                fix='make its directory writable for the relay, or change "audit"',
            ) from error


def time_kept(name: str) -> datetime | None:
    """When the document with this file name was refused, in UTC, or None if the name has another form."""
    match = _NAME.fullmatch(name)
    try:
        return None if match is None else datetime.strptime(match[1].removesuffix("Z"), _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None


def find_kept(directory: str, name: str) -> Path | None:
    """Find a refused document of any relay in this runtime directory by its file name, or None if there is none."""
    if _NAME.fullmatch(name) is None:
        return None
    return next(iter(sorted(Path(directory).glob(f"{REFUSED}/*/{name}"))), None)


def _is_same(before: Refusal, error: RejectedDocumentError, evidence: Evidence) -> bool:
    return type(before.error) is type(error) and before.evidence.pcrs == evidence.pcrs


def _tell(enclave: str, refusal: Refusal) -> None:
    """Log one line for each register that differs, because a line with several digests would be truncated."""
    for register in refusal.evidence.differing:
        measured = "missing" if register.measured is None else register.measured.hex()
        extra = fields(enclave=enclave, register=register.name, measured=measured, allowed=register.allowed.hex())
        _log.warning("a measurement differs", extra=extra)
    if refusal.kept is not None:
        _log.warning("the refused document was saved", extra=fields(enclave=enclave, document=refusal.kept))
