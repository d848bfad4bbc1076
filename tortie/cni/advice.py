"""What a person can do about a failure whose own words, which are Calico's, do not say it. Pure.

Each text becomes the `details` of a CNI error object: kubelet shows them in the pod's events, behind the
message. Why an automatic assignment finds no address is ipam.explain's.
"""

from collections.abc import Collection

from tortie.core.errors import printable
from tortie.datastore.types.ipam import AllocationAttribute
from tortie.ipam import addresses
from tortie.ipam.names import NAMESPACE, NODE, POD
from tortie.ipam.pools import Pool, containing

NO_CLUSTER = "calico-node writes it when it starts: is it running, and with the same datastore as the plugin?"
ONE_ENDPOINT = (
    "with the Kubernetes API as the datastore a pod has room for one endpoint: only the pod's first network"
    " can be Calico's; others need another plugin, or the etcd datastore"
)
LOCKED = (
    "datastoreReady is false in ClusterInformation default: an upgrade or a migration has locked the"
    " datastore; calicoctl datastore migrate unlock unlocks it"
)


def no_node(node: str) -> str:
    return (
        f"calico-node makes it when it starts: does it run on this node, and is {printable(node)} its name?"
    )


def ifname_taken(ifname: str) -> str:
    return f"the container has an interface {printable(ifname)} already: delete it, or ask for another name"


def pools_to_name(known: Collection[Pool], version: int) -> str:
    """For a pool that was asked for and is none."""
    named = ", ".join(f"{printable(p.name)} ({p.cidr})" for p in known if p.version == version)
    return f"IPv{version} pools are: {named}" if named else f"there is no IPv{version} pool"


def address_outside(address: str, known: Collection[Pool]) -> str:
    """For one particular address that no enabled pool has; '' if one has it."""
    where = addresses.address(address)
    pool = containing(known, where)
    if pool is None:
        return f"{address} is in no pool; {pools_to_name(known, where.version)}"
    if pool.enabled:
        return ""
    return f"{address} is in pool {printable(pool.name)} ({pool.cidr}), which {pool.fault or 'is disabled'}"


def holder(address: str, attribute: AllocationAttribute) -> str:
    """For one particular address that somebody has."""
    owner = attribute.secondary
    pod = f"{owner.get(NAMESPACE, '')}/{owner[POD]}" if owner.get(POD) else ""
    who = f"pod {pod}" if pod else f"handle {attribute.handle_id or '<none>'}"
    node = f" on node {owner[NODE]}" if owner.get(NODE) else ""
    return printable(f"{address} is held by {who}{node}; calicoctl ipam show --ip={address} tells more")


def foreign_block(cidr: str, affinity: str | None) -> str:
    """For one particular address in a block that strict affinity keeps from this node."""
    owner = f"is affine to {printable(affinity)}" if affinity else "is affine to no node"
    return f"block {cidr} {owner}; with strict affinity only its owner assigns from it"
