"""The kernel modules of a guest: unpacked, with the tables that modprobe reads, generated from the modules themselves.

Debian's package leaves ``modules.dep`` and ``modules.alias`` to depmod at installation. Both follow from each module's
``.modinfo`` section, a list of ``key=value`` strings separated by NUL.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.image.cpio import Entry, File
from lab.image.errors import ImageError

_MODINFO: Final = re.compile(rb"(?<=\0)(alias|depends|softdep)=([^\0]*)(?=\0)")
_SUFFIX: Final = ".ko.xz"


@dataclass(frozen=True, slots=True)
class Module:
    """One kernel module: `path` is relative to the release's folder, `data` the unpacked ELF object."""

    name: str
    path: str
    data: bytes

    @property
    def aliases(self) -> tuple[str, ...]:
        """The aliases under which the kernel requests this module."""
        return tuple(value for key, value in self._modinfo() if key == "alias")

    @property
    def depends(self) -> tuple[str, ...]:
        """Modules that have to be loaded first."""
        names = [value for key, value in self._modinfo() if key == "depends"]
        return tuple(name.replace("-", "_") for value in names for name in value.split(",") if name)

    def _modinfo(self) -> list[tuple[str, str]]:
        return [(key.decode(), value.decode()) for key, value in _MODINFO.findall(self.data)]


def collect(folder: Path, wanted: Iterable[str]) -> dict[str, Module]:
    """Return the requested modules of ``lib/modules/<release>`` and all their dependencies.

    Names that end in ``*`` are prefixes.

    Raises:
        ImageError: A requested module is not in the package.
    """
    available = {_name(path): path for path in sorted(folder.rglob(f"*{_SUFFIX}"))}
    pending = [name for pattern in wanted for name in _matches(pattern, available)]
    found: dict[str, Module] = {}
    while pending:
        name = pending.pop()
        if name in found:
            continue
        if name not in available:
            raise ImageError("cannot build the guest", why=f"the kernel package has no module {name}")
        path = available[name]
        relative = str(path.relative_to(folder)).removesuffix(".xz")
        found[name] = Module(name, relative, lzma.decompress(path.read_bytes()))
        pending.extend(found[name].depends)
    return dict(sorted(found.items()))


def entries(modules: Mapping[str, Module], release: str) -> dict[str, Entry]:
    """Return files below ``usr/lib/modules``: the objects, ``modules.dep`` and ``modules.alias``."""
    root = f"usr/lib/modules/{release}"
    tree: dict[str, Entry] = {f"{root}/{module.path}": File(module.data) for module in modules.values()}
    dep_lines = (f"{module.path}: {' '.join(closure(module, modules))}".rstrip() for module in modules.values())
    alias_lines = (f"alias {alias} {module.name}" for module in modules.values() for alias in module.aliases)
    tree[f"{root}/modules.dep"] = File("".join(f"{line}\n" for line in dep_lines).encode())
    tree[f"{root}/modules.alias"] = File("".join(f"{line}\n" for line in alias_lines).encode())
    return tree


def closure(module: Module, modules: Mapping[str, Module]) -> list[str]:
    """Return the paths of a module's dependencies, the nearest first, as ``modules.dep`` lists them."""
    seen: dict[str, None] = {}
    pending = list(module.depends)
    while pending:
        name = pending.pop(0)
        if name not in seen:
            seen[name] = None
            pending.extend(modules[name].depends)
    # A common dependency has to be loaded before both modules: keep its last position.
    order = sorted(seen, key=lambda name: _depth(name, modules), reverse=True)
    return [modules[name].path for name in order]


def _depth(name: str, modules: Mapping[str, Module]) -> int:
    return 1 + max((_depth(other, modules) for other in modules[name].depends), default=0)


def _name(path: Path) -> str:
    return path.name.removesuffix(_SUFFIX).replace("-", "_")


def _matches(pattern: str, available: Iterable[str]) -> list[str]:
    if not pattern.endswith("*"):
        return [pattern]
    return [name for name in available if name.startswith(pattern[:-1])]
