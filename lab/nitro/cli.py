"""``nitro-cli`` for a machine without Nitro: see `lab.nitro`. ``lab/bin/nitro-cli`` starts it.

Environment:

* ``NITRO_CLI_SOCKETS_PATH``        the parent's state, as for the real tool, by default /run/nitro_enclaves
* ``WGVSOCK_LAB_ENCLAVE_MEMORY``    MiB for all enclaves, by default 65536
* ``WGVSOCK_LAB_ENCLAVE_CPUS``      CPUs for all enclaves, by default 64
* ``WGVSOCK_LAB_ENCLAVE_KIND``      ``guest``, the default, or ``namespace`` (`lab.nitro.local`)
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from lab.image import build as images
from lab.image.eif import VERSION, EifError, measure, measurements_json, pack, unpack
from lab.image.enclave import from_image, overlay
from lab.nitro import failures
from lab.nitro.enclaves import Limits, Parent, Request
from lab.nitro.failures import NitroFailure
from lab.nitro.local import LocalParent

_CONSOLE_POLL: Final = 0.1  # seconds
_CONFIG_KEYS: Final = ("eif_path", "memory_mib", "cpu_count", "enclave_cid", "enclave_name", "debug_mode")


class _Parser(argparse.ArgumentParser):
    """Wrong arguments end with a number of their own, as with the real tool."""

    def error(self, message: str) -> NoReturn:
        raise NitroFailure(failures.MISSING_ARGUMENT if "required" in message else failures.INVALID_ARGUMENT, message)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line of the tool."""
    try:
        arguments = _parser().parse_args(argv)
        result = arguments.run(arguments, _parent())
    except NitroFailure as failure:
        sys.stderr.write(failure.report())
        return failure.exit_status
    if result is not None:
        print(json.dumps(result, indent=2))
    return 0


def _parent() -> Parent:
    environment = os.environ.get
    limits = Limits(
        int(environment("WGVSOCK_LAB_ENCLAVE_MEMORY", "65536")), int(environment("WGVSOCK_LAB_ENCLAVE_CPUS", "64"))
    )
    kind = {"guest": Parent, "namespace": LocalParent}[environment("WGVSOCK_LAB_ENCLAVE_KIND", "guest")]
    return kind(Path(environment("NITRO_CLI_SOCKETS_PATH", "/run/nitro_enclaves")), limits)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="nitro-cli")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run-enclave")
    run.set_defaults(run=_run_enclave)
    run.add_argument("--eif-path", type=Path)
    run.add_argument("--memory", type=int)
    run.add_argument("--cpu-count", type=int)
    run.add_argument("--cpu-ids", type=int, nargs="+")
    run.add_argument("--enclave-cid", type=int)
    run.add_argument("--enclave-name")
    run.add_argument("--debug-mode", action="store_true")
    run.add_argument("--attach-console", action="store_true")
    run.add_argument("--config", type=Path)
    describe = verbs.add_parser("describe-enclaves")
    describe.set_defaults(run=lambda _arguments, parent: parent.describe())
    terminate = verbs.add_parser("terminate-enclave")
    terminate.set_defaults(run=_terminate_enclave)
    console = verbs.add_parser("console")
    console.set_defaults(run=_console)
    for verb, more in ((terminate, True), (console, False)):
        one = verb.add_mutually_exclusive_group(required=True)
        one.add_argument("--enclave-id")
        one.add_argument("--enclave-name")
        if more:
            one.add_argument("--all", action="store_true")
    build = verbs.add_parser("build-enclave")
    build.set_defaults(run=_build_enclave)
    build.add_argument("--docker-uri", required=True, help="the image's name; the files are the laboratory's guest")
    build.add_argument("--docker-dir", type=Path, help="files to add to the application, laid out as in the enclave")
    build.add_argument("--output-file", type=Path, required=True)
    build.add_argument("--name")
    build.add_argument("--version", default="1.0")
    eif = verbs.add_parser("describe-eif")
    eif.set_defaults(run=_describe_eif)
    eif.add_argument("--eif-path", type=Path, required=True)
    return parser


def _run_enclave(arguments: argparse.Namespace, parent: Parent) -> dict[str, Any]:
    request = _request(arguments)
    sys.stderr.write("Start allocating memory...\n")
    started = parent.run(request)
    sys.stderr.write(
        f"Started enclave with enclave-cid: {started['EnclaveCID']}, memory: {started['MemoryMiB']} MiB, "
        f"cpu-ids: {started['CPUIDs']}\n"
    )
    if arguments.attach_console:
        print(json.dumps(started, indent=2), flush=True)
        arguments.enclave_id, arguments.enclave_name = started["EnclaveID"], None
        _console(arguments, parent)
        raise SystemExit(0)
    return started


def _request(arguments: argparse.Namespace) -> Request:
    """Return the arguments, or the file of ``--config``, checked in the real tool's order."""
    given = {
        "eif_path": arguments.eif_path,
        "memory_mib": arguments.memory,
        "cpu_count": arguments.cpu_count,
        "enclave_cid": arguments.enclave_cid,
        "enclave_name": arguments.enclave_name,
        "debug_mode": arguments.debug_mode,
    }
    if arguments.config is not None:
        if any(given.values()) or arguments.cpu_ids:
            raise NitroFailure(failures.CONFLICTING_ARGUMENT, "User provided both `config` and other arguments.")
        try:
            given = {
                key: value for key, value in json.loads(arguments.config.read_text()).items() if key in _CONFIG_KEYS
            }
        except (OSError, ValueError) as error:
            raise NitroFailure(failures.FILE_OPERATION, str(error)) from None
    if arguments.cpu_ids and given.get("cpu_count"):
        raise NitroFailure(failures.CONFLICTING_ARGUMENT, "User provided both `cpu-count` and `cpu-ids`.")
    cpus = len(arguments.cpu_ids) if arguments.cpu_ids else given.get("cpu_count")
    for key, value in (("eif-path", given.get("eif_path")), ("memory", given.get("memory_mib")), ("cpu-count", cpus)):
        if not value:
            raise NitroFailure(failures.MISSING_ARGUMENT, f"User did not provide the `{key}` argument.")
    return Request(
        image=Path(str(given["eif_path"])),
        memory_mib=int(given["memory_mib"] or 0),
        cpu_count=int(cpus or 0),
        cid=given.get("enclave_cid"),
        name=given.get("enclave_name"),
        debug=bool(given.get("debug_mode")),
    )


def _terminate_enclave(arguments: argparse.Namespace, parent: Parent) -> Any:
    ended = parent.terminate(enclave_id=arguments.enclave_id, name=arguments.enclave_name)
    for one in ended:
        sys.stderr.write(f"Successfully terminated enclave {one['EnclaveID']}.\n")
    return ended if arguments.all else ended[0]


def _console(arguments: argparse.Namespace, parent: Parent) -> None:
    """Print the console from its beginning, and follow it until the enclave ends."""
    path, machine = parent.console(enclave_id=arguments.enclave_id, name=arguments.enclave_name)
    sys.stderr.write("Connecting to the console for enclave...\nSuccessfully connected to the console.\n")
    with path.open("rb") as stream:
        while True:
            ended = machine.exit_code() is not None
            shutil.copyfileobj(stream, sys.stdout.buffer)
            sys.stdout.flush()
            if ended:
                return
            time.sleep(_CONSOLE_POLL)


def _build_enclave(arguments: argparse.Namespace, _parent: Parent) -> dict[str, Any]:
    sys.stderr.write("Start building the Enclave Image...\n")
    with tempfile.TemporaryDirectory(prefix="nitro-cli-") as folder:
        files = overlay(arguments.docker_dir) if arguments.docker_dir else {}
        built = images.build(files, target=Path(folder))
        image = from_image(built, name=arguments.name or arguments.docker_uri, version=arguments.version)
        try:
            arguments.output_file.write_bytes(pack(image))
        except OSError as error:
            raise NitroFailure(failures.EIF_BUILDING, str(error)) from None
    sys.stderr.write("Enclave Image successfully created.\n")
    return measurements_json(measure(image))


def _describe_eif(arguments: argparse.Namespace, _parent: Parent) -> dict[str, Any]:
    try:
        image = unpack(arguments.eif_path.read_bytes())
    except (OSError, EifError) as error:
        raise NitroFailure(failures.FILE_OPERATION, f"\nFile: '{arguments.eif_path}'. {error}") from None
    return {
        "EifVersion": VERSION,
        **measurements_json(measure(image)),
        "IsSigned": False,
        "CheckCRC": True,
        "ImageName": image.metadata.get("ImageName", ""),
        "ImageVersion": image.metadata.get("ImageVersion", ""),
        "Metadata": {key: image.metadata[key] for key in ("BuildMetadata", "DockerInfo") if key in image.metadata},
    }


if __name__ == "__main__":
    sys.exit(main())
