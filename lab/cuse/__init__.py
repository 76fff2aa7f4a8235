"""``/dev/nsm`` in a guest, served from user space: the production client meets a real device node and ioctl."""
