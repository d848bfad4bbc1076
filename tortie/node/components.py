"""Which processes a node runs, as the environment asks for them."""

import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from tortie.bgp import bird, exabgp
from tortie.bgp.prefix import Version
from tortie.core import health
from tortie.core.paths import Paths
from tortie.core.speaker import speaker
from tortie.node.supervisor import Component


def components(env: Mapping[str, str], paths: Paths, name: str) -> list[Component]:
    """In the order they are started; they are stopped in reverse. `name`: the node's. Raises ConfigError."""
    told = {health.VARIABLE: paths.health_socket, "NODENAME": name}
    parts = []
    if not env.get("CALICO_DISABLE_FELIX"):
        parts.append(Component("felix", role("-felix"), told))
    speaking = speaker(env)
    if speaking != "none":
        parts.append(Component("confd", role("-confd"), told))
    if speaking == "exabgp":
        parts.append(Component("bgp", exabgp.argv(), told))
    if speaking == "bird":
        parts += _birds(paths)
    parts.append(Component("tunnels", role("-allocate-tunnel-addrs"), told))
    parts.append(Component("cni", role("-cni-server"), told))
    return parts


def _birds(paths: Paths) -> list[Component]:
    """One per family. Confd reports their health, as `bgp`, and makes the files that they start from."""
    bird.require()
    files: list[tuple[str, Version, str]] = [("bird", 4, paths.bird_cfg), ("bird6", 6, paths.bird6_cfg)]
    return [
        Component(name, bird.argv(family), prerequisite=file, health="bgp", stop=signal.SIGKILL)
        for name, family, file in files
    ]


def role(role: str) -> list[str]:
    """This very command in another role, as `ps` should show it: calico-node -felix."""
    script = Path(sys.executable).with_name("calico-node")
    if script.exists():
        return [str(script), role]
    return [sys.executable, "-m", "tortie.node.main", role]
