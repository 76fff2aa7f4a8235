"""One enclave's room: launched, asked, judged, its interface and its session."""
