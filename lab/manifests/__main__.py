"""``python -m lab.manifests [OVERLAY...]``: renders each overlay, and reports what an API server would refuse.

An overlay is any folder, or by default each one of deploy/. Exit status: 0 without a finding, 1 otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import kubernetes_validate

from lab.errors import LabError
from lab.manifests import pod_security
from lab.manifests.render import Object, overlays, render, render_ours
from lab.manifests.rules import RULES, check

MINORS = ("1.35", "1.36", "1.37")
"""The three that upstream supports."""

OF_OTHERS = ("monitoring.coreos.com/",)
"""API groups whose schemas are not part of Kubernetes."""


def schema_mistakes(objects: Sequence[Object]) -> list[str]:
    """Return the findings of the strict schemas of each minor version."""
    found = []
    for item in objects:
        if item["apiVersion"].startswith(OF_OTHERS):
            continue
        for minor in MINORS:
            try:
                kubernetes_validate.validate(item, minor, strict=True)
            except kubernetes_validate.ValidationError as error:
                found.append(f"schema {minor}: {item['kind']}/{item['metadata']['name']}: {error.message}")
    return found


def mistakes(objects: list[Object]) -> list[str]:
    """Return the findings of the schemas and of the project's own rules."""
    return [*schema_mistakes(objects), *check(objects), *pod_security.mistakes(objects)]


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    wrong = 0
    for name in arguments or overlays():
        try:
            objects = render(Path(name)) if arguments else render_ours(name)
            found = mistakes(objects)
        except LabError as error:
            objects, found = [], [f"{error}: {error.why}"]
        wrong += len(found)
        print(f"{name}: {len(objects)} objects, Kubernetes {', '.join(MINORS)}, {len(RULES)} rules: ", end="")
        print("ok" if not found else f"{len(found)} mistakes")
        for line in found:
            print(f"  {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
