"""The three routing tables that the article on a packet's life shows of a Calico node, as shapes of lines.

A shape is a line without what names a place: addresses, interfaces of pods and of the machine, and the
protocol, which is bird there. A machine's other interfaces (docker0 there) are left out. Lines of one shape,
such as those of several pods, count once; their order follows from addresses, so a table is a set of shapes.

Ours say two things more, both on purpose: a route of BGP without a tunnel is `onlink`, so that it can be
written before the kernel knows how the gateway is reached; and a VXLAN node, too, has a blackhole for what
of its block has no pod, which Calico has since the article.
"""

import re

_ALWAYS = {
    "default via ADDRESS dev UPLINK",
    "NET dev UPLINK proto kernel scope link src ADDRESS",
    "ADDRESS dev POD scope link",
}
_BLACKHOLE = "blackhole NET proto P"

ARTICLE = {  # the pool's mode -> the table
    "ipip": {*_ALWAYS, _BLACKHOLE, "NET via ADDRESS dev tunl0 proto P onlink"},
    "direct": {*_ALWAYS, _BLACKHOLE, "NET via ADDRESS dev UPLINK proto P"},
    "vxlan": {*_ALWAYS, "NET via ADDRESS dev vxlan.calico onlink"},
}
OURS = {  # the same with the two additions
    "ipip": ARTICLE["ipip"],
    "direct": {*_ALWAYS, _BLACKHOLE, "NET via ADDRESS dev UPLINK proto P onlink"},
    "vxlan": {*ARTICLE["vxlan"], _BLACKHOLE},
}
# BIRD knows its gateways, and gives routes a metric, as Calico's does since the article.
OURS_WITH_BIRD = {**OURS, "direct": {*_ALWAYS, _BLACKHOLE, "NET via ADDRESS dev UPLINK proto P metric 1024"}}

_PLACES = [  # in this order
    (r"\b(\d+\.){3}\d+/\d+", "NET"),
    (r"\b(\d+\.){3}\d+\b", "ADDRESS"),
    (r"\bdev (eth|ens)\d+\b", "dev UPLINK"),
    (r"\bdev cali[0-9a-f]{11}\b", "dev POD"),
    (r"\bproto (bird|bgp|80|186)\b", "proto P"),
]


def shapes(table: str) -> set[str]:
    """Of what `ip route` prints."""
    for pattern, name in _PLACES:
        table = re.sub(pattern, name, table)
    return {line.strip() for line in table.splitlines()}
