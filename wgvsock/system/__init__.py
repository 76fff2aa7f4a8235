"""The kernel and the tools around it: rtnetlink, packet filter, connection tracking, resolver, nitro-cli."""
