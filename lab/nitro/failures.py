"""The real tool's numbered failures (AWS Nitro Enclaves user guide, "Nitro Enclaves CLI error codes")."""

from __future__ import annotations

from typing import Final

from lab.errors import LabError

_HELP: Final = "https://docs.aws.amazon.com/enclaves/latest/user/cli-errors.html"

MISSING_ARGUMENT: Final = 1
CONFLICTING_ARGUMENT: Final = 2
INVALID_ARGUMENT: Final = 3
SOCKET: Final = 11
FILE_OPERATION: Final = 19
INSUFFICIENT_CPUS: Final = 22
INSUFFICIENT_MEMORY_REQUESTED: Final = 26
INSUFFICIENT_MEMORY_AVAILABLE: Final = 27
BOOT_FAILURE: Final = 36
PROCESS_CONNECTION: Final = 39
CONSOLE_CONNECTION: Final = 44
EIF_BUILDING: Final = 48
NAMING: Final = 58

_TITLES: Final = {
    MISSING_ARGUMENT: "Missing mandatory argument.",
    CONFLICTING_ARGUMENT: "Conflicting arguments.",
    INVALID_ARGUMENT: "Invalid argument provided.",
    SOCKET: "Socket error.",
    FILE_OPERATION: "File operation failure.",
    INSUFFICIENT_CPUS: "Insufficient CPUs available in the pool.",
    INSUFFICIENT_MEMORY_REQUESTED: "Insufficient memory requested.",
    INSUFFICIENT_MEMORY_AVAILABLE: "Insufficient memory available.",
    BOOT_FAILURE: "Enclave boot failure.",
    PROCESS_CONNECTION: "Enclave process connection failure.",
    CONSOLE_CONNECTION: "Enclave console connection failure.",
    EIF_BUILDING: "EIF building error.",
    NAMING: "Enclave naming error.",
}


class NitroFailure(LabError):  # noqa: N818 (the tool's own word: NitroCliFailure)
    """A failure with its number, which is also the exit code.

    Args:
        number: One of the constants of this module.
        detail: Text after the title.
        in_enclave_process: It happened in the process that holds the enclave. The tool then reports that the connection
            to it was lost (E39), and ends with that number.
    """

    def __init__(self, number: int, detail: str, *, in_enclave_process: bool = False) -> None:
        super().__init__(f"E{number:02} {_TITLES[number]} {detail}".rstrip())
        self.numbers = (number, PROCESS_CONNECTION) if in_enclave_process else (number,)
        self._detail = detail

    @property
    def exit_status(self) -> int:
        """The tool's exit code."""
        return self.numbers[-1]

    def report(self) -> str:
        """What the tool writes to standard error."""
        pages = [self._page(number, self._detail if number == self.numbers[0] else "") for number in self.numbers]
        return "Failed connections: 1\n".join(pages)

    @staticmethod
    def _page(number: int, detail: str) -> str:
        name = f"E{number:02}"
        text = f"{_TITLES[number]} {detail}".rstrip()
        return f"[ {name} ] {text}\n\nFor more details, please visit {_HELP}#{name}\n\n"
