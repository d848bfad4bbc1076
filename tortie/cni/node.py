"""What the node says about itself in files, read for each call: its name, MTU, its endpoints' state.

(Reference: CNI plugin, 4.1.) Both are written by calico-node; until the name is there the node is not
ready to have pods.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from tortie.cni.netconf import NetConf
from tortie.cni.protocol import Code
from tortie.core.errors import CniError, ConfigError
from tortie.core.files import read_or_none

_RUN, _LIB = "/var/run/calico", "/var/lib/calico"  # Calico's


@dataclass(frozen=True, slots=True)
class Paths:
    """Where files are; environment variables move them, so that one machine can run several nodes."""

    socket: str = f"{_RUN}/cni.sock"
    run: str = _RUN
    lib: str = _LIB
    nodename: str = f"{_LIB}/nodename"

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "Paths":
        """From TORTIE_CNI_SOCKET, CALICO_RUN_DIR, CALICO_LIB_DIR and CALICO_NODENAME_FILE."""
        run, lib = env.get("CALICO_RUN_DIR") or _RUN, env.get("CALICO_LIB_DIR") or _LIB
        return cls(
            socket=env.get("TORTIE_CNI_SOCKET") or f"{run}/cni.sock",
            run=run,
            lib=lib,
            nodename=env.get("CALICO_NODENAME_FILE") or f"{lib}/nodename",
        )

    @property
    def mtu(self) -> str:
        return f"{self.lib}/mtu"

    @property
    def endpoint_status(self) -> str:
        return f"{self.run}/endpoint-status"


def node_name(conf: NetConf, paths: Paths) -> str:
    """The name this node has in the datastore. Raises CniError if it has not been set up yet."""
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
    name = conf.nodename or from_file or conf.hostname or socket.gethostname().strip().lower()
    if not name.isascii() or not name.isprintable() or "/" in name or " " in name:
        raise ConfigError("nodename", name, "not a node name")
    return name


def own_node_name(env: Mapping[str, str], paths: Paths) -> str:
    """The name to expect in calls, before there is one: whose Node to keep at hand."""
    stored = (read_or_none(paths.nodename) or b"").decode("utf-8", "replace").strip()
    return env.get("NODENAME", "").strip() or stored or socket.gethostname().strip().lower()


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
