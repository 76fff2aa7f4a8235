"""``wgvsock config init relay --pcrs FILE``: a first configuration that accepts newly built images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from wgvsock.attestation.policy import IMAGE_PCRS
from wgvsock.cli.attest_arguments import read_pcrs
from wgvsock.errors import ConfigurationError

_KEPT: Final = (*IMAGE_PCRS, 8)
"""What a build measures: the image, and the certificate that signed it. PCR3 and PCR4 are the parent's."""

_PLACEHOLDER: Final = re.compile(r"# Replace the zeros.*?\npcr2 = \"0+\"\n", re.DOTALL)


def with_pcrs(template: str, role: str, paths: Sequence[str]) -> str:
    """The template with a table for each image instead of the zeros.

    Args:
        template: The role's template.
        role: Has to be ``relay``, as an enclave accepts no images.
        paths: Files with the output of ``nitro-cli build-enclave`` or ``describe-eif``. ``-`` is standard input.

    Raises:
        ConfigurationError: The role has no policy, or a file lacks one of PCR0 to PCR2.
    """
    if (zeros := _PLACEHOLDER.search(template)) is None:
        raise ConfigurationError(
            f"cannot use --pcrs for the {role}",
            why="only the relay accepts images",
            fix="write: wgvsock config init relay --pcrs FILE",
        )
    tables = "\n".join(_table(path) for path in paths)
    comment = "# From `nitro-cli build-enclave`, one table for each accepted image.\n"
    return template[: zeros.start()] + comment + tables + template[zeros.end() :]


def _table(path: str) -> str:
    pcrs = read_pcrs(path)
    if missing := [f"PCR{index}" for index in IMAGE_PCRS if index not in pcrs]:
        raise ConfigurationError(
            f"cannot make a policy from {path}",
            why=f"it lacks {', '.join(missing)}",
            fix="give the output of nitro-cli build-enclave or describe-eif",
        )
    lines = [f'pcr{index} = "{pcrs[index].hex()}"\n' for index in _KEPT if index in pcrs]
    return "".join(("[[attestation.pcr_sets]]\n", *lines))
