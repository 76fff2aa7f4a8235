"""An ordinary HTTP server. It is not aware of the enclave: the agent sets the network up before it starts."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GREETING = "Hello from an attested enclave"


class Greeter(BaseHTTPRequestHandler):
    """Answers every path with one line."""

    def do_GET(self) -> None:
        """Answer with the client's address, which the Relay preserves."""
        body = f"{GREETING}, {self.client_address[0]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", 8080), Greeter).serve_forever()  # noqa: S104 (the tunnel is the enclave's only interface)
