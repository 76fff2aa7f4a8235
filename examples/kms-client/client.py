"""A client of AWS KMS. It is not aware of the enclave: it uses names and TLS as on any machine.

``GET /`` calls KMS, ``GET /HOST`` calls another host in the same way. The answer reports the result.
"""

import http.client
import json
import ssl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENDPOINT = "kms.eu-central-1.amazonaws.com"
ROOTS = "/app/roots.pem"  # the trust anchors are part of the image, and measured
TIMEOUT = 10  # seconds


def ask(host: str) -> str:
    """Call GenerateRandom. KMS refuses a call that is not signed, but even a refusal shows that it was reached."""
    connection = http.client.HTTPSConnection(host, timeout=TIMEOUT, context=ssl.create_default_context(cafile=ROOTS))
    headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": "TrentService.GenerateRandom"}
    try:
        connection.request("POST", "/", json.dumps({"NumberOfBytes": 32}), headers)
        answer = connection.getresponse()
        return f"{host} answered {answer.status}: {answer.read(200).decode(errors='replace')}"
    except OSError as error:
        return f"{host} was not reached: {error}"
    finally:
        connection.close()


class Asker(BaseHTTPRequestHandler):
    """Makes one call per request."""

    def do_GET(self) -> None:
        """Call the host, and pass on its answer."""
        body = f"{ask(self.path.lstrip('/') or ENDPOINT)}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", 8080), Asker).serve_forever()  # noqa: S104 (the tunnel is the enclave's only interface)
