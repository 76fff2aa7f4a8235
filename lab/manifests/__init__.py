"""What a cluster would report about the manifests, as far as that can be known without one."""
