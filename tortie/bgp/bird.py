"""Starts BIRD 2 for one family: `python -m tortie.bgp.bird 4`. What supervision starts; it becomes BIRD.

BIRD that finds routes of an earlier run in the kernel takes back what it was doing (-R, RFC 4724): it keeps
them, and decides when its peers are back and have told all, or `graceful restart wait` is over. Where there
are none it need not wait, and does not: one dead peer would keep a new node without routes all that time.
Routes of the ExaBGP back-end count as its own; which they can be is known from bgp.json.

It is to be ended with SIGKILL: on SIGTERM it takes leave of its peers, and they drop our routes at once,
while they keep those of one that vanishes, for the restart time.
"""

import logging
import os
import shutil
import sys
from collections.abc import Mapping
from socket import AF_INET, AF_INET6

from tortie.bgp import config, leftovers
from tortie.bgp.prefix import Version
from tortie.core import log
from tortie.core.errors import ConfigError
from tortie.core.paths import Paths
from tortie.core.speaker import VARIABLE
from tortie.linux import routes
from tortie.linux.netlink import NetlinkSocket

PROGRAM = "bird"
_FAMILIES: Mapping[Version, int] = {4: AF_INET, 6: AF_INET6}

_log = logging.getLogger(__name__)


def argv(family: Version) -> list[str]:
    """The command line that supervision starts."""
    return [sys.executable, "-m", "tortie.bgp.bird", str(family)]


def check_argv(path: str) -> list[str]:
    """A command that ends with status 0 exactly if BIRD accepts the file."""
    return [PROGRAM, "-p", "-c", path]


def require() -> None:
    """Raises ConfigError where BIRD is not installed."""
    if shutil.which(PROGRAM) is None:
        raise ConfigError(VARIABLE, "bird", "there is no program `bird` here; install BIRD 2 (Debian: bird2)")


def command(family: Version, paths: Paths, recovering: bool) -> list[str]:
    """BIRD's own command line."""
    config, control = (paths.bird_cfg, paths.bird_ctl) if family == 4 else (paths.bird6_cfg, paths.bird6_ctl)
    return [PROGRAM, "-f", "-c", config, "-s", control, *(["-R"] if recovering else [])]


def leftover(family: int, bgp_json: str) -> bool:
    """Whether routes of an earlier run are in the kernel; all are BIRD's from here on. Raises KernelError."""
    try:
        known = config.load(bgp_json)
    except ConfigError as err:
        _log.error("what ExaBGP's agent left in the kernel stays: %s", err)
        known = None
    with NetlinkSocket() as netlink:
        if known is not None:
            leftovers.give_to_bird(netlink, family, leftovers.agents(known))
        return bool(routes.dump_frames(netlink, family, routes.TABLE_MAIN, routes.PROTOCOL_BIRD))


def main() -> None:
    """Returns never."""
    log.setup()
    family: Version = 6 if sys.argv[1:2] == ["6"] else 4
    paths = Paths.from_env()
    words = command(family, paths, leftover(_FAMILIES[family], paths.bgp_json))
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
