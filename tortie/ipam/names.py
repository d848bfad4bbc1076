"""Names that other programs rely on: attribute keys of allocations, and handle IDs.

A handle ID groups the addresses of one owner, so that they can be found and released without knowing
them. (Reference: Calico IPAM, 1.3 and 1.6.)
"""

import base64
import hashlib

# Keys of an allocation's owner attributes.
POD = "pod"
NAMESPACE = "namespace"
NODE = "node"
TYPE = "type"
SERVICE = "service"
TIMESTAMP = "timestamp"
NOTE = "note"
VMI_NAME = "vmi-name"
VMI_UID = "vmi-uid"
VM_UID = "vm-uid"
VMIM_UID = "vmim-uid"

# Values of `type`, each with the handle prefix of its tunnel address.
TUNNEL_HANDLES = {  # attribute type -> handle ID without the node name
    "wireguardTunnelAddress": "wireguard-tunnel-addr-",
    "wireguardV6TunnelAddress": "wireguard-v6-tunnel-addr-",
    "ipipTunnelAddress": "ipip-tunnel-addr-",
    "vxlanTunnelAddress": "vxlan-tunnel-addr-",
    "vxlanV6TunnelAddress": "vxlan-v6-tunnel-addr-",
}

# Addresses that a node keeps ready for its next pods: attribute type, and handle ID without the node name.
WARM_TYPE = "warmPool"
_WARM_HANDLE = "warm-pool-"

WINDOWS_RESERVED_HANDLE = "windows-reserved-ipam-handle"  # compared without regard to case
LOAD_BALANCER_HOST = "load-balancer"  # the virtual owner of Service addresses

VM_HANDLE = ".vmi."  # between the network's and the VM's name in a handle
_VM_HANDLE_LENGTH = 128  # Calico's limit, so that the handle fits a Kubernetes name with room to spare


def cni_handle(network: str, container_id: str) -> str:
    return f"{network}.{container_id}"


def legacy_cni_handle(container_id: str, namespace: str = "", pod: str = "") -> str:
    """What the v2 plugin used; DEL still releases it."""
    return f"{namespace}.{pod}" if pod else container_id


def tunnel_handle(attribute_type: str, node: str) -> str:
    return TUNNEL_HANDLES[attribute_type] + node


def warm_handle(node: str) -> str:
    return _WARM_HANDLE + node


def is_warm(handle: str | None) -> bool:
    """Whether it is the handle of a node's ready addresses."""
    return clean_handle(handle).startswith(_WARM_HANDLE)


def vm_handle(network: str, namespace: str, vm: str) -> str:
    """The handle all pods of one KubeVirt VM share; a long one ends in a digest."""
    prefix, suffix = f"{network or 'k8s-pod-network'}{VM_HANDLE}", f"{namespace}.{vm}"
    length = len(prefix) + len(suffix)
    # Exactly as long as allowed and starting like a digest, it could be mistaken for one.
    if length < _VM_HANDLE_LENGTH or (length == _VM_HANDLE_LENGTH and not suffix.startswith("_")):
        return prefix + suffix
    digest = base64.urlsafe_b64encode(hashlib.sha256(suffix.encode()).digest()).decode().rstrip("=")
    return (prefix + "_" + digest)[:_VM_HANDLE_LENGTH]


def load_balancer_handle(name: str, namespace: str, uid: str) -> str:
    digest = hashlib.sha256(f"{name}-{namespace}-{uid}".lower().encode()).digest()
    text = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    return "lb-" + text.translate(str.maketrans("", "", "-_."))


def clean_handle(handle: str | None) -> str:
    """The handle without what a historic bad migration appended; '' for none."""
    return (handle or "").split("\r", 1)[0]
