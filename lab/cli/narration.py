"""The demonstration's output in a terminal: headings, steps with their marks, a summary. Layout only, no logic."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Final, TextIO

from lab.topology import Topology
from lab.watch.walkthrough import Step

_MARKS: Final = {True: ("32", "✓"), False: ("31", "✗")}
_LABEL_WIDTH: Final = 15


class Narrator:
    """Prints the report to a stream.

    Args:
        stream: The output. Colours are used only if it is a terminal and NO_COLOR (https://no-color.org) is not set.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._colours = stream.isatty() and not os.environ.get("NO_COLOR")
        self._width = min(shutil.get_terminal_size((110, 24)).columns, 120)

    def title(self, text: str, subtitle: str) -> None:
        """The first line."""
        self._write(f"{self._paint('1', text)}  {self._paint('2', subtitle)}")

    def picture(self, topology: Topology) -> None:
        """Draw the four machines and the connections between them."""
        enclave = _box("enclave", "wg0", topology.enclave4)
        pod = _box("pod", f"{'wg0':<{len(topology.relay4)}}   eth0", f"{topology.relay4}   {topology.pod4}")
        node = _box("node", "router", "")
        external = _box("external", "eth0", topology.external4)
        joints = (("     ", "   "), ("vsock", "   "), ("═════", "───"), ("     ", "   "))  # 80 columns in all
        self._write()
        for row, (vsock, cable) in enumerate(joints):
            line = enclave[row] + vsock + pod[row] + cable + node[row] + cable + external[row]
            self._write("  " + self._paint("36", line))

    def heading(self, text: str, aside: str = "") -> None:
        """Begin a section."""
        self._write()
        line = f"── {text} "
        tail = f" {aside} ──" if aside else "──"
        rule = "─" * max(2, self._width - len(line) - len(tail))
        self._write(self._paint("1;34", line) + self._paint("2", rule + tail))

    def fact(self, label: str, text: str, *, ok: bool = True) -> None:
        """Report a checked fact, true or false."""
        colour, mark = _MARKS[ok]
        self._write(f" {self._paint(colour, mark)} {label:<{_LABEL_WIDTH}} {text}")

    def message(self, arrow: str, name: str, size: int, about: str, milliseconds: float) -> None:
        """Report a protocol message."""
        when = f"+{milliseconds:.1f} ms"
        self._write(f"   {self._paint('36', arrow)} {name:<21} {size:>5} B  {self._paint('2', f'{when:>9}')}  {about}")

    def step(self, step: Step) -> None:
        """Report a step of one of the paper's lifecycles."""
        colour, mark = _MARKS[step.ok]
        self._write(f" {self._paint(colour, mark)} {step.number}  {step.title}")
        self._write(f"      {self._paint('36', f'{step.point.value:<14}')} {self._paint('2', step.seen)}")

    def verdict(self, lines: Sequence[tuple[str, str]], *, ok: bool, seconds: float) -> None:
        """Print the summary."""
        self.heading("Seen" if ok else "NOT as required", f"{seconds:.1f} s")
        for label, text in lines:
            self.fact(label, text, ok=ok)

    def failure(self, what: str, why: str, where: str) -> None:
        """Report an early end."""
        self._write()
        self._write(f" {self._paint('31', '✗')} {self._paint('1', what)}")
        if why:
            self._write("\n".join(f"   {line}" for line in why.splitlines()))
        self._write(self._paint("2", f"   logs and captures: {where}"))

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colours and text else text

    def _write(self, line: str = "") -> None:
        print(line, file=self._stream, flush=True)


def _box(name: str, first: str, second: str) -> tuple[str, str, str, str]:
    width = max(len(first), len(second), len(name) + 2)
    return (
        f"┌─ {name} {'─' * (width - len(name) - 1)}┐",
        f"│ {first:<{width}} │",
        f"│ {second:<{width}} │",
        f"└{'─' * (width + 2)}┘",
    )


def silent() -> Narrator:
    """Return a narrator for ``--json``: its report goes nowhere, because standard output is for the object."""
    return Narrator(open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123 (lives as long as the process)


def to_terminal() -> Narrator:
    """Return a narrator on standard output. If its encoding lacks frames and arrows, question marks replace them."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return Narrator(sys.stdout)
