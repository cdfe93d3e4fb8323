"""Everything that talks to the Linux kernel by more than plain sockets: namespaces, rules, links, packets."""
