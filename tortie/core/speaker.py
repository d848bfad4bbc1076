"""CALICO_NETWORKING_BACKEND: who speaks BGP on this node. All its processes ask here."""

import os
from collections.abc import Mapping
from typing import Literal

from tortie.core.errors import ConfigError

VARIABLE = "CALICO_NETWORKING_BACKEND"

Speaker = Literal["exabgp", "bird", "none"]

_SPEAKERS: Mapping[str, Speaker] = {  # value of the variable -> the speaker
    "": "exabgp",
    "exabgp": "exabgp",
    "bird": "bird",
    "vxlan": "none",
    "none": "none",
}


def speaker(environment: Mapping[str, str] = os.environ) -> Speaker:
    """Raises ConfigError."""
    given = environment.get(VARIABLE, "")
    if given not in _SPEAKERS:
        raise ConfigError(VARIABLE, given, "not one of exabgp, bird, vxlan, none")
    return _SPEAKERS[given]
