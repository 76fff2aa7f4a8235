"""The real image under the real manifest, on this machine: podman with runc plays kubelet's part."""
