"""Thin typed edges to the kernel; no policy and no datastore here.

Netlink, network namespaces, sysctls, iptables, ip sets, conntrack.
"""
