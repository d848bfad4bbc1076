"""Where a container that installs CNI finds the host's folders and its own.

As in Calico the host's folders are mounted below /host, or, in calico-node, at the path that they have on
the host, so that what a configuration names is the same file for the runtime and for the CNI server.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from tortie.core.errors import ConfigError
from tortie.core.files import read_or_none

_log = logging.getLogger(__name__)

KUBECONFIG = "calico-kubeconfig"
TLS = "calico-tls"  # the folder of etcd's certificates


@dataclass(frozen=True, slots=True)
class HostFiles:
    """`net`: the runtime's folder of configurations as the host calls it; `root`: where all paths start."""

    net: str = "/etc/cni/net.d"
    secrets: str = "/calico-secrets"  # etcd's certificates, where they are mounted
    root: str = ""  # but in tests nothing

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ, root: str = "") -> "HostFiles":
        """CNI_NET_DIR and TLS_ASSETS_DIR. Raises ConfigError for a path that is not absolute."""
        files = cls(
            net=env.get("CNI_NET_DIR") or cls().net,
            secrets=env.get("TLS_ASSETS_DIR") or cls().secrets,
            root=root,
        )
        for variable, path in (("CNI_NET_DIR", files.net), ("TLS_ASSETS_DIR", files.secrets)):
            if not path.startswith("/"):
                raise ConfigError(variable, path, "must be an absolute path")
        return files

    @property
    def net_here(self) -> str:
        """The runtime's folder as this container sees it: below /host wherever that is mounted.

        Calico's name for it there is fixed, whatever the host's is.
        """
        fixed = f"{self.root}/host/etc/cni/net.d"
        return fixed if os.path.isdir(fixed) else self.root + self.net

    @property
    def secrets_here(self) -> str:
        return self.root + self.secrets

    @property
    def programs(self) -> str:
        """What this image has to install."""
        return f"{self.root}/opt/cni/bin"

    @property
    def program_folders(self) -> tuple[str, ...]:
        """Where the host may look for plugins."""
        return (f"{self.root}/host/opt/cni/bin", f"{self.root}/host/secondary-bin-dir")

    @property
    def account(self) -> str:
        """Where a pod finds its own service account."""
        return f"{self.root}/var/run/secrets/kubernetes.io/serviceaccount"

    def of_account(self, name: str) -> str:
        """The content of `token` or `namespace` there, '' if this is no pod that has an account."""
        return (read_or_none(f"{self.account}/{name}") or b"").decode("utf-8", "replace").strip()


def keeps_credential(env: Mapping[str, str], files: HostFiles) -> bool:
    """Whether a node keeps the plugin's kubeconfig: in a pod that sees the runtime's folder."""
    if env.get("CALICO_MANAGE_CNI", "").lower() == "false" or not files.of_account("token"):
        return False
    if os.path.isdir(files.net_here):
        return True
    _log.warning("%s is not mounted: the CNI plugin's kubeconfig is not renewed", files.net_here)
    return False
