"""Imports single modules of a package that would otherwise load all of itself."""

from __future__ import annotations

import importlib
import importlib.util
import sys


def import_parts(name: str) -> None:
    """Let the modules of a package be imported without the package's own ``__init__``.

    That runs as soon as anything is asked of the package that is not one of its modules, so that all else finds the
    package as it always is. A package that is already loaded is left alone.

    Args:
        name: A package outside of any other.

    Raises:
        ModuleNotFoundError: There is no such package.
    """
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        message = f"No module named {name!r}"
        raise ModuleNotFoundError(message, name=name)
    loader = spec.loader
    package = importlib.util.module_from_spec(spec)

    def complete(attribute: str) -> object:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        if importlib.util.find_spec(f"{name}.{attribute}") is not None:
            return importlib.import_module(f"{name}.{attribute}")
        del package.__dict__["__getattr__"]
        loader.exec_module(package)
        return getattr(package, attribute)

    package.__dict__["__getattr__"] = complete  # for attributes that a module does not have (PEP 562)
    sys.modules[name] = package
