"""The enclave's agent: answers the relay, keeps the tunnel and runs the application."""
