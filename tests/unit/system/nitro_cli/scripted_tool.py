"""A shell script that prints real output of nitro-cli, and records its calls."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from wgvsock.system.nitro_cli import NitroCli, RunRequest

RUNNING = {
    "EnclaveName": "wgvsock",
    "EnclaveID": "i-05f6ed443a0123456-enc173dfe3e0123456",
    "ProcessID": 7077,
    "EnclaveCID": 10,
    "NumberOfCPUs": 2,
    "CPUIDs": [1, 3],
    "MemoryMiB": 1600,
}
DESCRIBED = {**RUNNING, "State": "RUNNING", "Flags": "DEBUG_MODE"}
REQUEST = RunRequest("/images/app.eif", 2, 1600)

# As the tool's issues 232 and 516 show it, shortened.
HUGE_PAGES = """Start allocating memory...
[ E35 ] EIF file parsing error. Such error appears when attempting to fill a memory region.

For more details, please visit http://enclaves.aws.amazon.com/nitro-cli/errors#E35
Failed connections: 1
[ E39 ] Enclave process connection failure. Such error appears when the enclave manager fails to connect.
"""
COLLISION = """Start allocating memory...
[ E36 ] Enclave boot failure. Such error appears when attempting to receive the `ready` signal.
Failed connections: 1
[ E39 ] Enclave process connection failure.
"""


class Tool:
    """A stand-in executable: answers are files, so that a call can change what the next one sees."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "nitro-cli"
        self.sleeps: list[float] = []
        self.path.write_text(
            f'#!/bin/sh\ncd "{folder}"\necho "$@" >> calls\n'
            'cat "$1.stdout" 2>/dev/null\ncat "$1.stderr" >&2 2>/dev/null\nexit $(cat "$1.code" || echo 0)\n'
        )
        self.path.chmod(0o755)

    def answers(self, verb: str, stdout: object = None, *, stderr: str = "", code: int = 0) -> None:
        text = stdout if isinstance(stdout, str) else json.dumps(stdout)
        (self.folder / f"{verb}.stdout").write_text(text)
        (self.folder / f"{verb}.stderr").write_text(stderr)
        (self.folder / f"{verb}.code").write_text(str(code))

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def alive(self) -> bool:
        """Return whether the process whose identifier the script has written is still running."""
        try:
            pid = int((self.folder / "pid").read_text())
            status = Path(f"/proc/{pid}/stat").read_text()
        except (OSError, ValueError):
            return False
        return status.rpartition(")")[2].split()[0] != "Z"  # an orphan of a killed tool waits for process 1

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        await asyncio.sleep(0)

    def cli(self) -> NitroCli:
        return NitroCli(str(self.path), lock_path=str(self.folder / "lock"), sleep=self.sleep)
