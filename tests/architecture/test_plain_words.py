"""What is read by people reads as English: phrases that a translation leaves behind do not come back."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]

READ: Final = ("wgvsock", "lab", "benchmarks", "deploy", "examples", "fuzz", "tools", "docs", "tests", ".github")
"""Folders in which every line has been read once. Another one is added when it has been."""

PAGES: Final = ("README.md", "SECURITY.md", "CONTRIBUTING.md", "Makefile", "mkdocs.yml", "pyproject.toml", "setup.py")
"""Files beside the folders."""

GENERATED: Final = frozenset({".svg", ".json", ".pem", ".pyc"})
"""Suffixes of files that nobody writes by hand, or that have no sentences."""

PHRASES: Final = {
    r"\bany more\b(?! than)": '"no longer"',
    r"\b(is|are|was|were) none of\b": '"is not one of", or what it is instead',
    r"\bIt is so\b": "the reason, or nothing",
    r"\b(way|leads?) (out )?to the world\b": '"uplink" or "forwarding"',
    r"\bof (its|his) own\b(?! (machine|accord))": '"separate", or nothing',
    r"\bwhoever (is|was|has|asks|waits|wants|reads)\b": "the program or person by name, such as the client",
    r"\b(no|any) way there\b": '"no route"',
    r"\btak(e|es|en|ing) ((everything|it|them|all) )?back\b": '"revert" or "undo"',
    r"\bby the way\b": '"implicitly", or nothing',
    r"(^|; )(?-i:None): ": '"None if ..."',
}
"""Each phrase, and what is written in its place."""

_CODE: Final = re.compile(r"``[^`]*``|`[^`]*`|\([^()]*\)|:=[^;]*;")
"""What a semicolon may stand in: code, parentheses, and formulas."""


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Every comment and every text in a module, by line."""
    lines = iter(source.splitlines(keepends=True))
    for token in tokenize.generate_tokens(lambda: next(lines, "")):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def spliced(source: str) -> Iterator[tuple[int, str]]:
    """Docstrings of one line in which a semicolon joins two clauses, by line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            text = node.value.value
            if "\n" not in text and ";" in _CODE.sub("", text):
                yield node.lineno, text


def paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """The paragraphs of a page, a script or a manifest, by first line, without fenced code and comment signs."""
    start, lines, is_code = 1, list[str](), False
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        is_code ^= line.lstrip().startswith("```")
        words = line.strip().lstrip("#>*|").strip()
        if words and not is_code:
            start = start if lines else number
            lines.append(words)
        elif lines:
            yield start, " ".join(lines)
            lines.clear()


def phrases(found: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Phrases of a translation in these texts, by line."""
    for line, text in found:
        for phrase, instead in PHRASES.items():
            for match in re.finditer(phrase, " ".join(text.split()), re.IGNORECASE):
                yield line, f'"{match[0].strip()}": write {instead}'


def complaints(source: str) -> list[str]:
    """What reads like a translation in a module, each with its line."""
    found = [*phrases(texts(source)), *((line, f"one sentence each: {text}") for line, text in spliced(source))]
    return [f"line {line}: {what}" for line, what in sorted(found)]


def complaints_about_text(text: str) -> list[str]:
    """What reads like a translation in another file, each with its line."""
    return [f"line {line}: {what}" for line, what in phrases(paragraphs(text))]


def look(path: Path) -> list[str]:
    """What reads like a translation in a file."""
    text = path.read_text(encoding="utf-8", errors="replace")  # such as an archive that a build has left
    return complaints(text) if path.suffix == ".py" else complaints_about_text(text)


@pytest.mark.parametrize("name", [*READ, *PAGES])
def test_no_phrase_of_a_translation(name: str) -> None:
    place = ROOT / name
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    read = [path for path in files if path.suffix not in GENERATED and path != Path(__file__)]
    assert read
    assert {str(path.relative_to(ROOT)): told for path in read if (told := look(path))} == {}


@pytest.mark.parametrize(
    "line",
    [
        '_log.info("the enclave is no peer any more")',
        'why = "the root is none of the accepted roots"',
        "x = 1  # It is so.",
        '"""The way to the world\nis open."""',
        '"""Takes a lock; others wait."""',
        '"""Answers whoever asks."""',
        '"""Has a port of its own."""',
        'class A:\n    """The port; None: there is none."""',
        'def f():\n    """Take everything back."""',
    ],
)
def test_a_phrase_is_found(line: str) -> None:
    assert len(complaints(line)) >= 1


@pytest.mark.parametrize(
    "line",
    [
        "x = 1  # any more than 3 would not fit",
        '"""Types of messages (RFC 792; RFC 4443)."""',
        '"""Runs ``a; b``."""',
        '"""C := KDF1(C, E);  H := HASH(H || E)."""',
        '"""The port, or None if there is none."""',
        '"""Two sentences.\n\nThe first one; the second."""',
    ],
)
def test_what_is_english_passes(line: str) -> None:
    assert complaints(line) == []


@pytest.mark.parametrize(
    "text",
    [
        "# the enclave is no peer\n# any more\n",
        "* It has a port of its\n  own.\n",
        "| key | whoever asks |\n",
        "```\nany more code\n```\nIt is none of\nthe accepted ones.\n",
    ],
)
def test_a_phrase_is_found_across_the_lines_of_a_page(text: str) -> None:
    assert len(complaints_about_text(text)) == 1


@pytest.mark.parametrize("text", ["```\nany more\n```\n", "It is one\nof\n\nits own.\n", "", "# a comment\n"])
def test_code_and_separate_paragraphs_pass(text: str) -> None:
    assert complaints_about_text(text) == []
