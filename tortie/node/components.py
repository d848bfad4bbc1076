"""Which processes a node runs, as the environment asks for them."""

import sys
from collections.abc import Mapping
from pathlib import Path

from tortie.bgp import exabgp
from tortie.core import health
from tortie.core.paths import Paths
from tortie.node.supervisor import Component

_NO_BGP = ("none", "vxlan")  # networking backends without a routing daemon


def components(env: Mapping[str, str], paths: Paths, name: str) -> list[Component]:
    """In the order they are started; they are stopped in reverse. `name` is the node's."""
    told = {health.VARIABLE: paths.health_socket, "NODENAME": name}
    parts = []
    if not env.get("CALICO_DISABLE_FELIX"):
        parts.append(Component("felix", role("-felix"), told))
    if env.get("CALICO_NETWORKING_BACKEND", "bird") not in _NO_BGP:
        parts.append(Component("confd", role("-confd"), told))
        parts.append(Component("bgp", exabgp.argv(), told))
    parts.append(Component("tunnels", role("-allocate-tunnel-addrs"), told))
    parts.append(Component("cni", role("-cni-server"), told))
    return parts


def role(role: str) -> list[str]:
    """This very command in another role, as `ps` should show it: calico-node -felix."""
    script = Path(sys.executable).with_name("calico-node")
    if script.exists():
        return [str(script), role]
    return [sys.executable, "-m", "tortie.node.main", role]
