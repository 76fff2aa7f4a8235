"""The application inside the enclave: its processes, their outcomes, and the reports to the relay."""
