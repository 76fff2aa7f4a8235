"""What the pages of docs/ say about each error, each check of a document and each reason for a drop.

The pages are the catalogue, so that nothing is written twice. A build copies them into the package (setup.py). A
checkout reads its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from wgvsock.attestation import errors
from wgvsock.errors import SystemSetupError

_PACKAGE: Final = Path(__file__).resolve().parents[1]
FOLDERS: Final = (_PACKAGE / "pages", _PACKAGE.parent / "docs")
"""Where to look for the pages: in an installed package, then in a checkout."""

ERRORS: Final = "errors.md"
CHECKS: Final = "protocol/attestation.md"
DROPS: Final = "operations.md"
PAGES: Final = (ERRORS, CHECKS, DROPS)

_LINK: Final = re.compile(r"\[([^]]+)\]\([^)]*\)")


@dataclass(frozen=True, slots=True)
class Entry:
    """One name and its meaning.

    Attributes:
        name: ``WGV-E031``, ``pcr.set`` or ``no_route``.
        kind: What it is the name of.
        meaning: What happened.
        remedy: What to do about it. Empty if the page says nothing.
        exit_status: Exit status of a command that ends with it, or None if it ends none.
        page: The page that describes it, relative to docs/.
    """

    name: str
    kind: Literal["error", "check", "drop reason"]
    meaning: str
    remedy: str = ""
    exit_status: int | None = None
    page: str = ERRORS


def entries(folders: tuple[Path, ...] = FOLDERS) -> list[Entry]:
    """The whole catalogue, in the order of the pages.

    Raises:
        SystemSetupError: The pages are missing.
    """
    return [
        *_errors(_page(folders, ERRORS)),
        *_named(_section(_page(folders, CHECKS), "| # | check |"), "check", CHECKS),
        *_named(_section(_page(folders, CHECKS), "| check of a client |"), "check", CHECKS),
        *_named(_section(_page(folders, DROPS), "| reason | what was dropped |"), "drop reason", DROPS),
    ]


def normalised(name: str) -> str:
    """A name as the catalogue writes it: ``e31`` and ``31`` are ``WGV-E031``."""
    found = re.fullmatch(r"(?:(?:wgv-)?e)?(\d{1,3})", name.strip(), re.IGNORECASE | re.ASCII)
    return f"WGV-E{int(found[1]):03}" if found else name.strip().lower()


def _page(folders: tuple[Path, ...], name: str) -> str:
    for folder in folders:
        try:
            return (folder / name).read_text(encoding="utf-8")
        except OSError:
            continue
    raise SystemSetupError(
        "cannot read the catalogue", why=f"the package lacks {name}", fix="reinstall wgvsock from its wheel"
    )


def _section(page: str, heading: str) -> list[list[str]]:
    """The cells of the table with this heading, row by row."""
    _, _, rest = page.partition(heading)
    rows: list[list[str]] = []
    for line in rest.splitlines()[2:]:
        if not line.startswith("|"):
            break
        rows.append(_cells(line))
    return rows


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _errors(page: str) -> Iterator[Entry]:
    for line in page.splitlines():
        if line.startswith("| WGV-E"):
            code, exit_status, meaning, remedy = _cells(line)
            yield Entry(code, "error", _plain(meaning), _plain(remedy), int(exit_status))


def _named(rows: list[list[str]], kind: Literal["check", "drop reason"], page: str) -> Iterator[Entry]:
    for row in rows:
        *_, names, meaning = row
        for name in re.findall(r"`([^`]+)`", names):
            yield Entry(name, kind, _plain(meaning), _remedy(name) if kind == "check" else "", page=page)


def _remedy(check: str) -> str:
    """The advice of the error for a failed check."""
    kinds = [kind for kind in vars(errors).values() if getattr(kind, "check", None) == check]
    return str(kinds[0].hint) if kinds else ""


def _plain(text: str) -> str:
    """Markdown without links, which a terminal cannot follow."""
    return _LINK.sub(r"\1", text)
