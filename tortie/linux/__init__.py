"""Thin typed edges to the kernel; no policy and no datastore here.

Netlink: `netlink` and `genetlink` (the sockets), `routes`, `route_target`, `iprules`, `links`, `addresses`,
`neighbours`, `qdisc`, `wireguard` (the objects), `monitor` (events), `codec` (the wire format below them).
Beside it: network namespaces, sysctls, `ethtool`, iptables, ip sets, `nftables`, conntrack.
"""
