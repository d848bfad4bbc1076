"""Where a node keeps its files: one place for all its processes, so that what one writes the others find.

Defaults are Calico's. Environment variables move them, so that several nodes can live on one machine.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from tortie.core.errors import ConfigError

_RUN, _LIB = "/var/run/calico", "/var/lib/calico"


@dataclass(frozen=True, slots=True)
class Paths:
    """`run` (sockets, status) is gone after a reboot, `lib` survives it; `confd` has the rendered files."""

    run: str = _RUN
    lib: str = _LIB
    confd: str = "/etc/calico/confd/config"
    nodename: str = f"{_LIB}/nodename"
    shutdown_note: str = f"{_LIB}/shutdownTS"
    cni_socket: str = f"{_RUN}/cni.sock"

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "Paths":
        """The folders move by CALICO_RUN_DIR, CALICO_LIB_DIR and CALICO_CONFD_CONFIG_DIR.

        Single files by CALICO_NODENAME_FILE, CALICO_SHUTDOWN_TIMESTAMP_FILE and TORTIE_CNI_SOCKET, which wins
        over their folder's.
        """
        run, lib = env.get("CALICO_RUN_DIR") or _RUN, env.get("CALICO_LIB_DIR") or _LIB
        return cls(
            run=run,
            lib=lib,
            confd=env.get("CALICO_CONFD_CONFIG_DIR") or cls().confd,
            nodename=env.get("CALICO_NODENAME_FILE") or f"{lib}/nodename",
            shutdown_note=env.get("CALICO_SHUTDOWN_TIMESTAMP_FILE") or f"{lib}/shutdownTS",
            cni_socket=env.get("TORTIE_CNI_SOCKET") or f"{run}/cni.sock",
        )

    # --- in lib ---------------------------------------------------------------------------------

    @property
    def mtu(self) -> str:
        """The MTU of new pods, which felix finds out and CNI reads."""
        return f"{self.lib}/mtu"

    # --- in run ---------------------------------------------------------------------------------

    @property
    def endpoint_status(self) -> str:
        """The folder in which felix says which endpoints are up, and CNI waits for it."""
        return f"{self.run}/endpoint-status"

    @property
    def health_socket(self) -> str:
        """Where components report to."""
        return f"{self.run}/health.sock"

    @property
    def probe_socket(self) -> str:
        """Where the probe commands ask."""
        return f"{self.run}/probe.sock"

    @property
    def warm_notes(self) -> str:
        """The folder in which CNI notes which ready addresses it has given to containers."""
        return f"{self.run}/warm-addresses"

    @property
    def owed_endpoints(self) -> str:
        """The folder in which CNI notes the endpoints whose ADD has answered and that are not written yet."""
        return f"{self.run}/owed-endpoints"

    @property
    def warm_metrics(self) -> str:
        """CNI's metrics of ready addresses, in Prometheus' text format."""
        return f"{self.run}/warm-addresses.prom"

    @property
    def bgp_status(self) -> str:
        """What the BGP agent reports."""
        return f"{self.run}/bgp-status.json"

    @property
    def bgp_routes(self) -> str:
        """Where the BGP agent tells its whole table to whoever connects."""
        return f"{self.run}/bgp-routes.sock"

    @property
    def bgp_nudge(self) -> str:
        """A datagram here, of any content, makes the BGP agent read its configuration again."""
        return f"{self.run}/bgp.sock"

    @property
    def bird_ctl(self) -> str:
        """Where BIRD takes birdcl's commands, IPv4."""
        return f"{self.run}/bird.ctl"

    @property
    def bird6_ctl(self) -> str:
        """Where BIRD takes birdcl's commands, IPv6."""
        return f"{self.run}/bird6.ctl"

    # --- in confd -------------------------------------------------------------------------------

    @property
    def exabgp_conf(self) -> str:
        """ExaBGP's configuration."""
        return f"{self.confd}/exabgp.conf"

    @property
    def bgp_json(self) -> str:
        """The BGP agent's configuration."""
        return f"{self.confd}/bgp.json"

    @property
    def bird_cfg(self) -> str:
        """BIRD's configuration, IPv4."""
        return f"{self.confd}/bird.cfg"

    @property
    def bird6_cfg(self) -> str:
        """BIRD's configuration, IPv6."""
        return f"{self.confd}/bird6.cfg"

    def create(self) -> None:
        """Make the folders that are missing. Raises ConfigError."""
        for name, folder in (("RUN", self.run), ("LIB", self.lib), ("CONFD_CONFIG", self.confd)):
            try:
                os.makedirs(folder, mode=0o755, exist_ok=True)
            except OSError as err:
                raise ConfigError(f"CALICO_{name}_DIR", folder, err.strerror or str(err)) from err
