"""Explains the tool's failures: cause and remedy instead of a page of text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from wgvsock.errors import SystemSetupError

_CODE: Final = re.compile(r"\[ (E\d\d) \]")
_SYMPTOMS: Final = frozenset({"E36", "E39", "E11"})  # the enclave did not start: not a cause in themselves

_ALLOCATOR: Final = "/etc/nitro_enclaves/allocator.yaml and restart nitro-enclaves-allocator.service"
_HUGE_PAGES: Final = (
    "not enough free huge pages for the enclave's memory",
    f"raise memory_mib in {_ALLOCATOR} (in Kubernetes, request and mount hugepages), or lower the enclave's memory",
)
_EXPLANATIONS: Final[Mapping[str, tuple[str, str]]] = {
    "E19": (
        "a file could not be opened: the image, or /dev/nitro_enclaves",
        "check the image's path, that the instance has enclaves enabled, and that the container has the device",
    ),
    "E20": ("a CPU is listed twice", "correct cpu_ids"),
    "E21": ("a CPU is not in the enclaves' pool", f"add it to cpu_pool in {_ALLOCATOR}"),
    "E22": ("the enclaves' CPU pool is too small", f"raise cpu_count in {_ALLOCATOR}, or lower the enclave's CPUs"),
    "E26": (
        "the requested memory is less than the image needs",
        "give the enclave at least four times the image's size",
    ),
    "E27": _HUGE_PAGES,
    "E31": _HUGE_PAGES,
    "E35": (f"the image could not be loaded; most often {_HUGE_PAGES[0]}", f"{_HUGE_PAGES[1]}; else check the image"),
    "E32": ("a CPU could not be given to the enclave", "leave a whole core to the parent, and use full cores"),
    "E36": (
        "the enclave did not boot, or another launch was in progress",
        "run it with debug = true and read nitro-cli console; check that the image's signature is still valid",
    ),
    "E58": ("the enclave's name is not valid", "use only letters, digits, '-' and '_'"),
}


class NitroCliError(SystemSetupError):
    """``nitro-cli`` failed, is missing, or gave an answer that cannot be understood.

    Args:
        what: What could not be done.
        codes: The codes that it printed, in order. The first that names a cause is `error_code`.
        why: As for every error.
        fix: As for every error.
    """

    code = "WGV-E060"
    exit_code = 8

    def __init__(self, what: str, *, codes: Sequence[str] = (), why: str = "", fix: str = "") -> None:
        super().__init__(what, why=why, fix=fix)
        self.codes = tuple(codes)
        self.error_code = _cause(codes)

    @property
    def only_symptoms(self) -> bool:
        """Whether the codes only say that the enclave did not start: another launch may have interfered."""
        return bool(self.codes) and _SYMPTOMS.issuperset(self.codes)


def translate(what: str, exit_code: int, stderr: str) -> NitroCliError:
    """The error for a call that failed, with cause and remedy.

    Args:
        what: What the call was for.
        exit_code: The tool's exit status.
        stderr: The tool's standard error.
    """
    codes = list(dict.fromkeys(_CODE.findall(stderr)))
    cause = _cause(codes)
    default = (f"nitro-cli ended with status {exit_code}", "see /var/log/nitro_enclaves on the parent instance")
    why, fix = _EXPLANATIONS.get(cause, default)
    names = ", ".join(codes) or "no error code"
    return NitroCliError(f"cannot {what}", codes=codes, why=f"{why} ({names})", fix=fix)


def unreadable(what: str, detail: str = "") -> NitroCliError:
    """The error for an answer that cannot be understood."""
    return NitroCliError(
        f"cannot {what}",
        why="nitro-cli's answer does not have the form of version 1.x" + (f": {detail}" if detail else ""),
        fix="update aws-nitro-enclaves-cli",
    )


def _cause(codes: Sequence[str]) -> str:
    return next((code for code in codes if code not in _SYMPTOMS), codes[0] if codes else "")
