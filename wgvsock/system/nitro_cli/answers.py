"""The tool's answers about enclaves: JSON, checked field by field against bounds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from wgvsock.addresses import Cid, enclave_cid
from wgvsock.errors import ConfigurationError
from wgvsock.system.nitro_cli.errors import NitroCliError, unreadable

_ANSWER: Final = re.compile(r"^[ \t]*(?=\{|\[(?! E\d\d \]))", re.MULTILINE)
"""Where the JSON begins: at the start of a line, after lines of prose and error codes."""

_PCR: Final = re.compile(r"PCR([0-9]|[12][0-9]|3[01])", re.ASCII)
_PCR_BYTES: Final = 48
_ENCLAVE_ID: Final = re.compile(r"i-[0-9a-f]{8,17}-enc[0-9a-f]{1,16}", re.ASCII)
_MOST_PROCESSES: Final = 1 << 22  # PID_MAX_LIMIT (linux/threads.h)
_MOST_CPUS: Final = 1024
_MOST_MEMORY: Final = 1 << 26  # MiB, 64 TiB: more than any instance has
_LONGEST_TEXT: Final = 255


@dataclass(frozen=True, slots=True)
class EnclaveInfo:
    """One enclave, as the tool describes it."""

    name: str
    enclave_id: str
    process_id: int
    cid: Cid
    state: str
    debug: bool
    cpu_count: int
    memory_mib: int

    @property
    def running(self) -> bool:
        """Whether it is running, as far as the parent can tell."""
        return self.state == "RUNNING"


@dataclass(frozen=True, slots=True)
class Listing:
    """The answer of ``describe-enclaves``.

    Attributes:
        enclaves: Enclaves that exist.
        failure: Why there may be more, or None if the list is complete.
    """

    enclaves: tuple[EnclaveInfo, ...]
    failure: NitroCliError | None = None

    def complete(self) -> tuple[EnclaveInfo, ...]:
        """The enclaves, provided that the list is complete.

        Raises:
            NitroCliError: There may be more.
        """
        if self.failure is not None:
            raise self.failure
        return self.enclaves


def parse(stdout: bytes, what: str) -> Any:
    """Parse the JSON that follows the prose.

    Args:
        stdout: The tool's standard output.
        what: What the call was for, for the error.

    Raises:
        NitroCliError: There is no valid JSON.
    """
    text = stdout.decode(errors="replace")
    start = _ANSWER.search(text)
    try:
        return json.loads(text[start.end() :] if start else "", parse_constant=_refuse_constant)
    except (ValueError, RecursionError):  # RecursionError: a page of brackets
        raise unreadable(what) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are Python's own, not JSON's (RFC 8259, section 6)


def json_object(value: Any, what: str) -> dict[str, Any]:
    """A value that has to be a JSON object.

    Raises:
        NitroCliError: It is something else.
    """
    if not isinstance(value, dict):
        raise unreadable(what)
    return value


def read_enclave(item: Mapping[str, Any], what: str) -> EnclaveInfo:
    """Read one enclave of a list, or the one that was launched.

    Raises:
        NitroCliError: A field has the wrong type, form or range.
    """
    enclave_id = _text(item, "EnclaveID", what)
    if not _ENCLAVE_ID.fullmatch(enclave_id):
        raise unreadable(what, "EnclaveID does not have the form i-…-enc…")
    try:
        cid = enclave_cid(_number(item, "EnclaveCID", what))
    except ConfigurationError as error:
        raise unreadable(what, f"EnclaveCID: {error.why}") from None
    return EnclaveInfo(
        name=_text(item, "EnclaveName", what),
        enclave_id=enclave_id,
        process_id=_number(item, "ProcessID", what, _MOST_PROCESSES),
        cid=cid,
        state=_text(item, "State", what),
        debug=_text(item, "Flags", what) == "DEBUG_MODE",
        cpu_count=_number(item, "NumberOfCPUs", what, _MOST_CPUS),
        memory_mib=_number(item, "MemoryMiB", what, _MOST_MEMORY),
    )


def read_measurements(value: Any, what: str) -> dict[int, bytes]:
    """Read the PCRs that ``describe-eif`` computed.

    Returns:
        48 bytes by PCR number.

    Raises:
        NitroCliError: They have another form.
    """
    measured = json_object(json_object(value, what).get("Measurements"), what)
    found = {name: _PCR.fullmatch(name) for name in measured if name != "HashAlgorithm"}
    if not all(found.values()):
        raise unreadable(what)
    try:
        values = {int(match[1]): bytes.fromhex(measured[name]) for name, match in found.items() if match}
    except (ValueError, TypeError):
        raise unreadable(what) from None
    if not values or any(len(value) != _PCR_BYTES for value in values.values()):
        raise unreadable(what)
    return values


def _text(item: Mapping[str, Any], key: str, what: str) -> str:
    value = item.get(key, "")
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        raise unreadable(what, f"{key} is not a text of up to {_LONGEST_TEXT} characters")
    return value


def _number(item: Mapping[str, Any], key: str, what: str, most: int | None = None) -> int:
    value = item.get(key, 0)
    if type(value) is not int or (most is not None and not 0 <= value <= most):  # in Python, a bool is an int as well
        raise unreadable(what, f"{key} is not a whole number" + ("" if most is None else f" from 0 to {most}"))
    return value
