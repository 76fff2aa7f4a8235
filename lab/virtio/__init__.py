"""The security module as a virtio device: a vhost-user back end for QEMU, and the kernel's own driver in the guest."""
