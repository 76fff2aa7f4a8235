"""The enclave's agent: answers the relay, maintains the tunnel and runs the application."""
