#!/bin/sh
# First process of a laboratory guest: file systems, modules, then the agent, which never returns.
# The loopback stays down, as in a booting enclave.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns
while read -r module; do modprobe "$module"; done < /etc/modules
exec /usr/bin/python3 -S -E /opt/wgvsock/lab/guest/agent.py
