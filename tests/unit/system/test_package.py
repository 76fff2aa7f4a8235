"""A package's modules, without what the package itself would load."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from wgvsock.system.package import import_parts


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package whose ``__init__`` loads two modules, of which `small` needs none."""
    name = "large_package_of_a_test"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text(f"from {name}.costly import dear\nfrom {name}.small import cheap\nwhole = 1\n")
    (folder / "costly.py").write_text("dear = 2\n")
    (folder / "small.py").write_text("cheap = 3\n")
    (folder / "crosswise.py").write_text(f"from {name} import small\nvalue = small.cheap\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


def imported(name: str, *attributes: str) -> ModuleType:
    return __import__(name, fromlist=attributes)


def test_a_module_comes_without_the_others(large: str) -> None:
    import_parts(large)
    assert imported(f"{large}.small", "cheap").cheap == 3
    assert imported(f"{large}.crosswise", "value").value == 3
    assert f"{large}.costly" not in sys.modules
    assert not hasattr(sys.modules[large], "__wrapped__")
    assert f"{large}.costly" not in sys.modules, "an inspection is no use of the package"


def test_whoever_wants_the_package_gets_whole(large: str) -> None:
    import_parts(large)
    assert imported(large, "whole").whole == 1
    assert sys.modules[large].dear == 2
    with pytest.raises(AttributeError, match="nothing"):
        sys.modules[large].nothing  # noqa: B018


def test_the_same_class_for_both(large: str) -> None:
    import_parts(large)
    part = imported(f"{large}.small", "cheap")
    assert imported(large, "cheap").cheap is part.cheap
    assert sys.modules[f"{large}.small"] is part


def test_a_loaded_package_is_left_alone(large: str) -> None:
    package = imported(large, "whole")
    import_parts(large)
    assert sys.modules[large] is package
    assert package.whole == 1


def test_a_package_that_is_not_there() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package_of_a_test"):
        import_parts("no_such_package_of_a_test")
