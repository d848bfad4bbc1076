"""A lab of two networks in a guest, where Python is slow: no process asks whether a node is ready."""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tortie.lab.cluster import Lab
from tortie.lab.underlay import SUBNETS


@contextmanager
def guest_lab(
    folder: Path, module: str, nodes: Mapping[str, str], patience: float, **settings: str
) -> Iterator[Lab]:
    """A pod on each node, and the last node behind the router.

    `module` is what the guest's kernel needs, `nodes` pod -> its node, `settings` go to every calico-node.
    """
    subprocess.run(["modprobe", module], check=True)
    lab = Lab(folder, len(nodes), remote=1, agent_env=settings)
    *_, far = nodes.values()
    try:
        lab.lay_ground()
        for name in nodes.values():
            lab.add_machine(SUBNETS[name == far]).start_agent()
        for node in lab.nodes.values():
            node.wait_until(node.box.path("/run/calico/cni.sock").is_socket, "CNI", patience)
        lab.add_namespace("default")
        for pod, name in nodes.items():
            lab.add_pod(pod, name)
        yield lab
    finally:
        lab.down()
