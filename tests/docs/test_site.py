"""The site as a reader gets it: built strictly, no dead link, nothing from third parties, a working search."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("zensical")

ROOT = Path(__file__).resolve().parents[2]
LOADED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}
"""What a browser loads without a click."""


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    zensical = Path(sys.executable).with_name("zensical")
    environment = {**os.environ, "NO_COLOR": "1"}
    command = [str(zensical), "build", "--clean", "--strict"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def copy(folder: Path) -> Path:
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy(tmp_path_factory.mktemp("site"))
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr
    return folder / "site"


class Page(HTMLParser):
    """A page's identifiers, links, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.identifiers: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.identifiers.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if (name := LOADED.get(tag)) in values and values.get("rel") not in {"canonical", "prev", "next"}:
            self.loaded.append(values[str(name)])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}


def dead(pages: dict[Path, Page]) -> Iterator[str]:
    for path, page in pages.items():
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                yield f"{path.name}: {link}"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].identifiers:
                yield f"{path.name}: {link} has no such place"


def test_every_link_leads_somewhere(pages: dict[Path, Page]) -> None:
    assert len(pages) > 40
    assert list(dead(pages)) == []


def test_nothing_comes_from_third_parties(pages: dict[Path, Page]) -> None:
    assert {link for page in pages.values() for link in page.loaded if urlsplit(link).netloc} == set()


def test_no_table_ends_up_as_text(site: Path) -> None:
    """A table needs an empty line and a heading before its rule. Otherwise its bars are shown."""
    rule = re.compile(r"\|\s*:?-{3,}")
    shown = {path.name for path in site.rglob("*.html") if rule.search(without_code(path.read_text(encoding="utf-8")))}
    assert shown == set()


def without_code(html: str) -> str:
    return re.sub(r"<(pre|code|script)\b.*?</\1>", "", html, flags=re.DOTALL)


def test_the_search_finds_what_people_look_for(site: Path) -> None:
    items = json.loads((site / "search.json").read_text(encoding="utf-8"))["items"]

    def found(word: str) -> set[str]:
        return {item["location"].partition("#")[0] for item in items if word in item["title"] + item["text"]}

    assert {"protocol/attestation.html", "enclave-image.html", "glossary.html"} <= found("PCR")
    assert "errors.html" in found("WGV-E071")
    assert "kms.html" in found("Recipient")


def test_the_front_page_has_one_picture_and_three_doors(pages: dict[Path, Page], site: Path) -> None:
    front = pages[site / "index.html"]
    assert [link for link in front.loaded if link.endswith(".svg")] == ["drawings/way.svg"]
    text = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "Operate it",
        "Build an enclave application",
        "Review its security",
    ]


def test_every_page_but_the_single_decisions_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = set(re.findall(r": ([\w/-]+\.md)$", navigation, re.MULTILINE))
    there = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert {name for name in there if not re.match(r"adr/\d", name)} == listed


@pytest.mark.parametrize("drawing", sorted((ROOT / "docs").rglob("*.svg")), ids=lambda path: path.name)
def test_a_drawing_is_for_light_and_dark_and_says_what_it_shows(drawing: Path) -> None:
    text = drawing.read_text(encoding="utf-8")
    assert "prefers-color-scheme:dark" in text
    assert re.search(r"<title[ >]", text)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("link", ["[x](nowhere.md)", "[x](faq.md#nowhere)"])
def test_a_dead_link_ends_the_build(tmp_path: Path, link: str) -> None:
    folder = copy(tmp_path)
    with (folder / "docs/glossary.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{link}\n")
    assert build(folder).returncode != 0
