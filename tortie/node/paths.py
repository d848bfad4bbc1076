"""Where a node keeps its files; one place, so that several nodes can live on one machine."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from tortie.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Paths:
    """Defaults are Calico's."""

    run: str = "/var/run/calico"
    lib: str = "/var/lib/calico"
    confd: str = "/etc/calico/confd/config"

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Paths":
        default = cls()
        return cls(
            run=env.get("CALICO_RUN_DIR") or default.run,
            lib=env.get("CALICO_LIB_DIR") or default.lib,
            confd=env.get("CALICO_CONFD_CONFIG_DIR") or default.confd,
        )

    @property
    def health_socket(self) -> str:
        """Where components report to."""
        return f"{self.run}/health.sock"

    @property
    def probe_socket(self) -> str:
        """Where the probe commands ask."""
        return f"{self.run}/probe.sock"

    def create(self) -> None:
        """Raises ConfigError."""
        for name, folder in (("RUN", self.run), ("LIB", self.lib), ("CONFD_CONFIG", self.confd)):
            try:
                os.makedirs(folder, mode=0o755, exist_ok=True)
            except OSError as err:
                raise ConfigError(f"CALICO_{name}_DIR", folder, err.strerror or str(err)) from err
