"""What the node says about itself in files, read for each call: its name, MTU, its endpoints' state.

(Reference: CNI plugin, 4.1.) Both are written by calico-node; until the name is there the node is not
ready to have pods.
"""

import os

from tortie.cni.netconf import NetConf
from tortie.cni.protocol import Code
from tortie.core.errors import CniError
from tortie.core.files import read_or_none
from tortie.core.paths import Paths
from tortie.datastore import nodename


def node_name(conf: NetConf, paths: Paths, own: str) -> str:
    """The name this node has in the datastore: what the configuration says, else its `own`.

    Raises CniError if the node has not been set up yet, ConfigError for what cannot name a node.
    """
    path = conf.nodename_file or paths.nodename
    try:
        content = read_or_none(path)
    except OSError as err:
        raise CniError(Code.INTERNAL, f"stat {path}: {(err.strerror or '').lower()}") from err
    if content is None and not conf.nodename_file_optional:
        raise CniError(
            Code.TRY_AGAIN_LATER,
            f"stat {path}: no such file or directory: check that the calico/node container is running"
            " and has mounted /var/lib/calico/",
        )
    from_file = (content or b"").decode("utf-8", "replace").strip()
    for name, where in ((conf.nodename, "nodename"), (from_file, path), (conf.hostname, "hostname")):
        if name:
            return nodename.checked(name, where)
    return own


def mtu(conf: NetConf, paths: Paths) -> int:
    """The pods' MTU: the configuration's, else the file's; 0 leaves it to the kernel.

    Raises CniError if the file must exist and does not, or holds no number.
    """
    if conf.mtu and not conf.require_mtu_file:
        return conf.mtu
    try:
        content = read_or_none(paths.mtu)
    except OSError as err:
        raise CniError(
            Code.INTERNAL, f"failed to read MTU file: open {paths.mtu}: {(err.strerror or '').lower()}"
        ) from err
    if content is None:
        if conf.require_mtu_file:
            raise CniError(
                Code.INTERNAL, f"failed to read MTU file: open {paths.mtu}: no such file or directory"
            )
        return conf.mtu
    text = content.decode("ascii", "replace").strip()
    if not text.isdecimal() or not text.isascii() or len(text) > 5:
        raise CniError(
            Code.INTERNAL, f"failed to read MTU file: {paths.mtu} holds {text[:40]!r}, not a number"
        )
    return conf.mtu or int(text)


def endpoint_status_path(conf: NetConf, paths: Paths, name: str) -> str:
    """Where felix makes the file `name` when it has programmed an endpoint."""
    return os.path.join(conf.endpoint_status_dir or paths.endpoint_status, name)
