"""Thin typed edges to the kernel: netlink, namespaces, sysctls, iptables, ip sets, conntrack. No policy, no datastore."""
