"""Pods of pools that were made a moment ago."""

from tortie.core.errors import CniError
from tortie.lab.cluster import Lab, wait_until
from tortie.lab.pods import Pod


def add_pod_of(pool: str, lab: Lab, *pod: str, **args: object) -> Pod:
    """Lab.add_pod, when the node has heard of the pool: its CNI server follows them by a watch."""
    added: list[Pod] = []

    def could() -> bool:
        try:
            added.append(lab.add_pod(*pod, **args))  # type: ignore[arg-type]
        except CniError as err:
            if f'error parsing pool "{pool}"' not in err.msg:
                raise
            return False
        return True

    wait_until(could, f"{pool} to be known for {pod}", 120)
    return added[0]
