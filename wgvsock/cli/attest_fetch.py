"""``wgvsock attest fetch`` for an enclave's clients, and ``wgvsock attest own`` for its application.

fetch: exit status 0 accepted, 5 rejected (the failed check is named), 6 no answer. own: prints the document in base64.
"""

from __future__ import annotations

import argparse
import base64
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from wgvsock.attestation.errors import RejectedDocumentError
from wgvsock.attestation.measurements import parse_hex
from wgvsock.attestation.policy import AWS_NITRO_ROOT_G1, PcrSet, Policy
from wgvsock.cli.attest_arguments import add_identity, add_policy, checked, expected_pcrs
from wgvsock.cli.output import note, print_json, put
from wgvsock.errors import ConfigurationError, SystemSetupError
from wgvsock.telemetry.client import request


def add_parsers(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``fetch`` and ``own`` to the verbs of ``wgvsock attest``."""
    fetch = verbs.add_parser("fetch", help="verify that a server is an enclave; exit 0 accepted, 5 rejected")
    fetch.add_argument("url", metavar="URL", help="https://HOST:PORT; without a path, /.well-known/nitro-attestation")
    fetch.add_argument("--document", metavar="URL", help="where to fetch the document, if not from URL")
    fetch.add_argument("--timeout", type=float, default=10.0, metavar="S", help="default: %(default)g s")
    fetch.add_argument("--json", action="store_true", help="print one JSON object")
    add_policy(fetch)
    add_identity(fetch)
    fetch.set_defaults(run=run_fetch)

    own = verbs.add_parser("own", help="inside the enclave: get a document for the application, in base64")
    for name in ("nonce", "user-data", "public-key"):
        own.add_argument(f"--{name}", type=checked(lambda text: parse_hex(text, "value")), metavar="HEX")
    own.add_argument("--socket", metavar="PATH", help="default: the agent's")
    own.set_defaults(run=run_own)


def run_fetch(args: argparse.Namespace) -> int:
    """Fetch a document from a server and verify it.

    Raises:
        ConfigurationError: The image's measurements are not given, or an argument is wrong.
        FetchError: The server gave no document.
        RejectedDocumentError: The document was rejected, and ``--json`` is not set.
    """
    from wgvsock.attest import fetch

    pcrs = expected_pcrs(args)
    if not pcrs:
        raise ConfigurationError(
            "cannot verify the server without an expected image",
            why="no PCRs were given",
            fix="give the output of nitro-cli build-enclave with --pcrs FILE",
        )
    policy = Policy(
        (PcrSet(pcrs),),
        tuple(args.root_sha256 or (AWS_NITRO_ROOT_G1,)),
        max_age=args.max_age,
        allow_debug=args.allow_debug,
    )
    try:
        server = fetch(
            args.url,
            policy,
            enclave_id=args.enclave_id,
            instance_id=args.instance_id,
            role_arn=args.role_arn,
            document_url=args.document,
            timeout=args.timeout,
            now=lambda: datetime.now(UTC),
        )
    except RejectedDocumentError as error:
        if not args.json:
            put(f"rejected: {error.check}")
            raise
        print_json({"ok": False, "check": error.check, "why": error.why, "fix": error.fix})
        return error.exit_code
    if policy.accepted_roots != (AWS_NITRO_ROOT_G1,):
        note("a root other than AWS's G1 was accepted, because of --root-sha256")
    fields: dict[str, Any] = {
        "module_id": server.document.module_id,
        "timestamp": server.document.timestamp.isoformat(),
        "spki_sha256": None if server.spki_sha256 is None else server.spki_sha256.hex(),
        "user_data": server.user_data.hex(),
        "public_key": None if server.document.public_key is None else server.document.public_key.hex(),
        "nonce": server.nonce.hex(),
    }
    if args.json:
        print_json({"ok": True, "check": None, **fields})
    else:
        put("accepted")
        for name, value in fields.items():
            put(f"{name:<12}{value or '-'}")
    return 0


def run_own(args: argparse.Namespace) -> int:
    """Get a document from the agent.

    Raises:
        SystemSetupError: The agent gives no document.
        TransportError: The agent cannot be reached.
    """
    from wgvsock.enclave.documents.settings import LOCAL_SOCKET

    fields = {"nonce": args.nonce, "user_data": args.user_data, "public_key": args.public_key}
    query = {key: value.hex() for key, value in fields.items() if value is not None} | {"format": "base64"}
    status, answer = request(args.socket or LOCAL_SOCKET, "POST", f"/document?{urlencode(query)}")
    if status != 200:
        raise SystemSetupError("the agent gave no document", why=str(answer).strip(), fix="see the agent's log")
    put(base64.b64encode(base64.b64decode(str(answer))).decode())
    return 0
