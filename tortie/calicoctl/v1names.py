"""Names of Calico's v1 API as names that v3 takes. Pure. (libcalico-go/lib/upgrade/converters/names.go.)"""

import hashlib
import ipaddress
import re

_NO_NAME = re.compile(r"[^-.a-z0-9]+")
_DOT = re.compile(r"[.-]*\.[.-]*")
_HASH_DIGITS = 8  # of a name that had to be changed, so that two that become alike stay apart
_V1_NAMESPACE_PROFILE = "k8s_ns."


def node_name(name: str) -> str:
    """Without a hash: other resources name the node, too."""
    name = _NO_NAME.sub("-", name.lower().replace("/", "."))
    return _DOT.sub(".", name).strip(".-")


def resource_name(name: str) -> str:
    return _qualified(name, node_name(name))


def name_without_dots(name: str) -> str:
    return _qualified(name, node_name(name).replace(".", "-"))


def profile_name(name: str) -> str:
    if name.startswith(_V1_NAMESPACE_PROFILE):
        name = "kns." + name.removeprefix(_V1_NAMESPACE_PROFILE)
    return resource_name(name)


def address_name(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    return address.exploded.replace(".", "-").replace(":", "-")


def cidr_name(cidr: str) -> str:
    return re.sub(r"[.:/]", "-", cidr)


def _qualified(original: str, name: str) -> str:
    if original == name:
        return name
    digest = hashlib.sha1(original.encode(), usedforsecurity=False).hexdigest()
    return f"{name}-{digest[:_HASH_DIGITS]}"
