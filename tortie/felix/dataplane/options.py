"""What the dataplane needs to know of the configuration."""

from dataclasses import dataclass

from tortie.felix.dataplane.endpoints import Wiring
from tortie.felix.dataplane.overlay import OverlayOptions
from tortie.felix.dataplane.wireguard import WireguardOptions
from tortie.felix.rules.iptables import Features
from tortie.felix.rules.settings import Settings


@dataclass(frozen=True, slots=True)
class Options:
    """Intervals are seconds, Calico's by default."""

    node: str
    settings: Settings = Settings()  # noqa: RUF009 - frozen values
    features: Features = Features()  # noqa: RUF009
    wiring: Wiring = Wiring()  # noqa: RUF009
    forwarding: bool = True
    set_maximum: int = 1048576
    external_nodes: tuple[str, ...] = ()
    overlay: OverlayOptions = OverlayOptions("")  # noqa: RUF009
    wireguard: WireguardOptions = WireguardOptions()  # noqa: RUF009
    table_interval: float = 180.0
    table_recheck: float = 5.0
    set_interval: float = 90.0
    route_interval: float = 90.0
    cut_denied: bool = False
