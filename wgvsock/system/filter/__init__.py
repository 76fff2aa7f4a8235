"""Our packet filter: tool-independent rules (`rules`), rendered (`nft`, `iptables`), applied and checked (`apply`)."""
