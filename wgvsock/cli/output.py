"""Output of the commands: data on standard output, errors in three lines on standard error.

Output contains untrusted names and answers, so all of it is made safe to show here (`wgvsock.text`). JSON stays exact,
because its own escapes already make it safe.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterable
from typing import Any, Final, NoReturn, TextIO

from wgvsock.errors import WgvsockError
from wgvsock.telemetry.schema import SCHEMA
from wgvsock.text import nearest, one_line, printable, printable_lines

_MAX_MESSAGE: Final = 2000
"""Most characters of one line of an error: a configuration may have a key of a megabyte."""


_UNRECOGNISED: Final = "unrecognized arguments: "
"""How argparse's message begins."""


class OutputError(WgvsockError):
    """The output of a command could not be written."""

    code = "WGV-E056"


def _options(parser: argparse.ArgumentParser) -> set[str]:
    """The long options of a parser and its subcommands."""
    found = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}  # noqa: SLF001
    for action in parser._actions:  # noqa: SLF001 (argparse offers no other way)
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for child in action.choices.values():
                found |= _options(child)
    return found


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are safe to show, and whose exit status is always its own.

    Arguments may be hostile file names that a shell's pattern expanded to. If standard error cannot be written, some
    versions of argparse raise.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.description:  # a module's docstring, whose markup does not belong on a terminal
            self.description = self.description.replace("`", "")

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, and end with status 2."""
        with contextlib.suppress(OSError):
            self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {one_line(message + self._suggestion(message), _MAX_MESSAGE)}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Suggest the choice that was probably meant, instead of listing all as argparse does."""
        choices = [str(choice) for choice in action.choices or ()]
        if isinstance(value, str) and value not in choices and (found := nearest(value, choices)):
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}, did you mean {found!r}?")
        super()._check_value(action, value)

    def _suggestion(self, message: str) -> str:
        """The option that was probably meant instead of an unknown one."""
        words = message.removeprefix(_UNRECOGNISED).split()
        if words == message.split() or not words[0].startswith("--"):
            return ""
        found = nearest(words[0].partition("=")[0], _options(self))
        return f", did you mean {found}?" if found else ""

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Print the message, if any, and end."""
        with contextlib.suppress(OSError):
            sys.stderr.write(message or "")
        sys.exit(status)


def add_schema(parser: argparse.ArgumentParser, name: str) -> None:
    """Add ``--schema``, which prints the JSON Schema of ``--json`` and ends.

    Args:
        parser: The parser of a command.
        name: Name of the schema in `wgvsock.telemetry.json_schema`.
    """
    parser.add_argument("--schema", action=_PrintSchema, const=name, nargs=0, help="print the JSON Schema of --json")


class _PrintSchema(argparse.Action):
    """Prints a schema and ends, as ``--help`` does."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from wgvsock.telemetry import json_schema

        put_text(json.dumps(getattr(json_schema, str(self.const)), indent=2) + "\n")
        parser.exit()


def put(text: str, *, end: str = "\n") -> None:
    """Print one line of data.

    Raises:
        BrokenPipeError: The reader has gone.
        OutputError: The output is closed, or its disk is full.
    """
    _write(printable(text) + end)


def put_text(text: str) -> None:
    """Print data of several lines, each with its own line feed.

    Raises:
        BrokenPipeError: The reader has gone.
        OutputError: The output is closed, or its disk is full.
    """
    _write(printable_lines(text))


def put_lines(lines: Iterable[str]) -> None:
    """Print lines of data in one write.

    Raises:
        BrokenPipeError: The reader has gone.
        OutputError: The output is closed, or its disk is full.
    """
    _write("".join(printable(line) + "\n" for line in lines))


def put_raw(text: str) -> None:
    """Print text that is already safe to show, such as our lines with colour.

    Raises:
        BrokenPipeError: The reader has gone.
        OutputError: The output is closed, or its disk is full.
    """
    _write(text)


def _write(text: str) -> None:
    """Write to standard output and flush, so that an error occurs here and not when the interpreter ends."""
    try:
        print(_encodable(text, sys.stdout), end="", flush=True)
    except OSError as error:
        _discard_output()
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(
            "cannot write to standard output",
            why=error.strerror or str(error),
            fix="the output is incomplete: make room or redirect it, and run the command again",
        ) from None


def _encodable(text: str, stream: TextIO) -> str:
    """Escape the characters that the stream's encoding lacks: an old locale must not end a command."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _discard_output() -> None:
    """Redirect standard output to /dev/null, so that the interpreter does not fail to flush it when it ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def print_error(error: WgvsockError) -> None:
    """Print ``error[WGV-E012]: what``, ``why: …`` and ``fix: …``, always one line each."""
    print_failure(error.code, error.what, error.why, error.fix)


def print_failure(code: str, what: str, why: str, fix: str) -> None:
    """Print an error that a service reported, in the same three lines."""
    lines = (
        f"error[{code}]: {what}",
        f"why: {why or 'it was refused'}",
        f"fix: {fix or f'see `wgvsock explain {code}`'}",
    )
    _tell("\n".join(one_line(line, _MAX_MESSAGE) for line in lines))


def note(text: str) -> None:
    """Print ``note: …``, for people, on standard error."""
    _tell(one_line(f"note: {text}", _MAX_MESSAGE))


def _tell(text: str) -> None:
    """Write to standard error. If that fails, only the exit status is left to report the error."""
    with contextlib.suppress(OSError):
        print(_encodable(text, sys.stderr), file=sys.stderr)


def print_json(value: dict[str, Any]) -> None:
    """Print one object on one line, with the key ``schema`` first."""
    put(json.dumps({"schema": SCHEMA, **value}))
