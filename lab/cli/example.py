"""``python -m lab.cli.example NAME``: runs the commands of an example, from building its enclave to its answer.

hello-enclave changes one line of the application, and the Relay gets an image that its policy does not name.
kms-client reaches the one name of its policy and no other. published-https is attested by its client, and so is a
proxy.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from lab.cli.raising import why_not_here
from lab.errors import LabError
from lab.nitro.rehearsal import Rehearsal, StandIn, say
from lab.programs.tls_application import make_certificate
from lab.qemu.backends import GuestBackend
from lab.topology import Node
from wgvsock.errors import AttestationError

_KMS: Final = "kms.eu-central-1.amazonaws.com"


def hello_enclave(folder: Path) -> None:
    """Build, launch and send a request. Then change one line, and check the consequences.

    Raises:
        LabError: A step went otherwise than the example says.
    """
    rehearsal = Rehearsal("hello-enclave", folder)
    greeting = re.search(r'^GREETING = "(.+)"$', (rehearsal.example / "server.py").read_text(), re.MULTILINE)
    if greeting is None:
        raise LabError("the application has no GREETING", why="the example changes that line")
    try:
        rehearsal.up()
        first = rehearsal.build("1")
        rehearsal.start("1", rehearsal.policy(first))
        if greeting[1] not in rehearsal.answer():
            raise LabError("another application answered")
        rehearsal.ladder.stop_relay()
        say("\nOne line of the application is changed:")
        second = rehearsal.build("2", (greeting[1], f"{greeting[1]}, and good morning"))
        changed = {
            register
            for register, value in json.loads(second.read_text())["Measurements"].items()
            if json.loads(first.read_text())["Measurements"][register] != value
        }
        if changed != {"PCR0", "PCR2"}:
            raise LabError(f"{', '.join(sorted(changed))} changed", why="PCR0 and PCR2 measure the application")
        say("  PCR0 and PCR2 differ, PCR1 (kernel and boot) does not")
        rehearsal.start("2", rehearsal.policy(first))
        say("  " + rehearsal.refusal().replace("\n", "\n  "))
        say("  The policy names only the first image: the enclave was terminated, and the Relay ended with 5")
        say("\nThe policy names both for the duration of the change:")
        rehearsal.start("2", rehearsal.policy(first, second))
        if "good morning" not in rehearsal.answer():
            raise LabError("another application answered")
    finally:
        rehearsal.down()


def kms_client(folder: Path) -> None:
    """Build, launch, and let the application call KMS, then another host, which the policy does not name.

    Raises:
        LabError: A step went otherwise than the example says.
    """
    kms, sts = "kms.lab.test", "sts.lab.test"
    certificate = folder / "kms.pem"
    key = make_certificate(certificate, kms, sts)  # so that only the policy stops the request to the other host
    stand_in = StandIn({_KMS: kms}, {"roots.pem": certificate.read_text(encoding="ascii")})
    rehearsal = Rehearsal("kms-client", folder, stand_in)
    say(f"{kms} stands here for {_KMS}, and its certificate for Amazon's roots")
    try:
        rehearsal.up()
        words = ["-m", "lab.guest.kms", "--certificate", str(certificate), "--key", str(key)]
        server = rehearsal.backend.spawn(Node.EXTERNAL, [sys.executable, *words], name="kms")
        server.wait_for_line("ready", rehearsal.backend.deadline(20))
        rehearsal.start("1", rehearsal.policy(rehearsal.build("1")))
        if f"{kms} answered 200" not in rehearsal.answer():
            raise LabError("KMS was not reached")
        say("  The policy names no other host:")
        if f"{sts} was not reached" not in rehearsal.answer(f"/{sts}"):
            raise LabError(f"{sts} was reached", why="the policy does not name it")
    finally:
        rehearsal.down()


def published_https(folder: Path) -> None:
    """Build, launch, and attest the server. Then put a proxy in its place, and then another image.

    Raises:
        LabError: A step went otherwise than the example says.
    """
    rehearsal = Rehearsal("published-https", folder)
    try:
        rehearsal.up()
        output = rehearsal.build("1")
        rehearsal.start("1", rehearsal.policy(output))
        rehearsal.answer()
        found = rehearsal.fetch(output)
        if found.exit_code:
            raise LabError("the enclave was refused", why=found.stderr.decode()[-1000:])
        say(f"  accepted: {json.loads(found.stdout)['module_id']} has this certificate's key")
        say("\nA proxy that ends TLS with its own certificate:")
        address = rehearsal.backend.topology.external4
        words = ["--port", "8443", "--certificate", str(folder / "proxy.pem")]
        upstream = rehearsal.url().removeprefix("https://")
        argv = [sys.executable, "-m", "lab.programs.tls_application", *words, "--upstream", upstream]
        proxy = rehearsal.backend.spawn(Node.EXTERNAL, argv, name="proxy")
        proxy.wait_for_line("ready", rehearsal.backend.deadline(20))
        _refused(rehearsal, output, f"https://{address}:8443", "tls.certificate")
        say("\nA client that expects another image:")
        other = rehearsal.build("2", ("Hello over TLS", "Good morning over TLS"))
        _refused(rehearsal, other, "", "pcr")
    finally:
        rehearsal.down()


def _refused(rehearsal: Rehearsal, measured: Path, url: str, check: str) -> None:
    found = rehearsal.fetch(measured, url)
    if found.exit_code != AttestationError.exit_code or check.encode() not in found.stdout + found.stderr:
        raise LabError(f"the client ended with {found.exit_code}", why=(found.stdout + found.stderr).decode()[-1000:])
    say(f"  refused: {check}")


REHEARSALS: Final[dict[str, Callable[[Path], None]]] = {
    "hello-enclave": hello_enclave,
    "kms-client": kms_client,
    "published-https": published_https,
}


def main(arguments: Sequence[str]) -> int:
    """Run the example."""
    parser = argparse.ArgumentParser(prog="python -m lab.cli.example", description=__doc__)
    parser.add_argument("name", choices=sorted(REHEARSALS))
    rehearse = REHEARSALS[parser.parse_args(arguments).name]
    if reason := why_not_here(GuestBackend):
        say(f"error: enclaves cannot be launched here: {reason}")
        return 7
    folder = Path(tempfile.mkdtemp(prefix="wgvsock-x-"))
    try:
        rehearse(folder)
    except LabError as error:
        say(f"error[{error.code}]: {error}\nwhy: {error.why}\nfix: {error.fix}")
        return error.exit_code
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
