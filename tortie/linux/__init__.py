"""Thin typed edges to the kernel; no policy and no datastore here.

Netlink: `netlink` (the socket), `routes`, `route_target`, `links`, `addresses`, `neighbours` (the
objects), `monitor` (events), `codec` (the wire format below them). Beside it: network namespaces,
sysctls, iptables, ip sets, conntrack.
"""
