"""The BIRD back-end's files in place: checked by BIRD, replaced in one step, the daemons told.

Each daemon has one file, so that a file is always whole. `configure` leaves sessions alone whose protocol
reads as before. BIRD cannot report its health itself: this process asks, and reports for it.
"""

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence

from tortie.bgp import bird, birdctl, birdstatus
from tortie.bgp.birdstatus import sockets
from tortie.bgp.prefix import Version
from tortie.confd import files, render
from tortie.confd.context import Context
from tortie.core.errors import ConfigError, PeerError
from tortie.core.files import read_or_none, write_atomic
from tortie.core.health import INTERVAL, UNREADY_INTERVAL, HealthSender
from tortie.core.paths import Paths

_DEAF = "BIRD does not answer"

_log = logging.getLogger(__name__)


class Bird:
    """Implements daemon.Speaker."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._paths = Paths.from_env(environment)
        self._files: Mapping[Version, str] = {4: self._paths.bird_cfg, 6: self._paths.bird6_cfg}
        self._health = HealthSender("bgp", environment)
        self._told: dict[
            Version, tuple[int | None, bytes]
        ] = {}  # family -> BIRD's pid, the file it was told of
        self._installed: dict[Version, bytes] = {}

    async def install(self, made: Context) -> tuple[bool, Sequence[str]]:
        """Whether a file changed, and what could not be said. Raises ConfigError, OSError, PeerError."""
        problems: list[str] = []
        self._note_prefixes(made)
        contents = {family: render.bird_cfg(made, family, problems) for family in self._files}
        changed = False
        refused: ConfigError | None = None
        for family, path in self._files.items():
            try:
                if read_or_none(path) != contents[family]:
                    await files.replace_checked(path, contents[family], bird.check_argv, "BIRD")
                    changed = True
            except ConfigError as err:  # that of the other family is good all the same
                refused = refused or err
            else:
                self._installed[family] = contents[family]
        try:
            await self._tell_all()
        except PeerError as err:
            raise refused or err from None
        if refused is not None:
            raise refused
        return changed, problems

    def _note_prefixes(self, made: Context) -> None:
        """For leftovers.py: which routes can be the ExaBGP back-end's. Where that ran here it said so itself;
        not in the container of a new pod. Raises OSError."""
        if read_or_none(self._paths.bgp_json) is None:
            write_atomic(self._paths.bgp_json, render.bgp_json(made, ""), files.SECRET_MODE)

    async def _tell_all(self) -> None:
        """Have each daemon that runs read its file, if it did not yet. Raises PeerError in the end."""
        silent: PeerError | None = None
        for family, content in self._installed.items():
            path = sockets(self._paths)[family]
            state = await asyncio.to_thread(birdctl.pid, path), content
            if state[0] is None or self._told.get(family) == state:
                continue  # one that is not there reads the file when it starts
            try:
                await asyncio.to_thread(birdctl.ask, path, "configure")
            except PeerError as err:  # the other family's is told all the same
                silent = silent or err
            else:
                self._told[family] = state
        if silent is not None:
            raise silent

    async def look_after(self) -> None:
        """For ever: report BIRD's health, and tell a daemon that was not there."""
        while True:
            reason = await self._look()
            self._health.report(live=reason != _DEAF, ready=not reason, reason=reason)
            await asyncio.sleep(UNREADY_INTERVAL if reason else INTERVAL)

    async def _look(self) -> str:
        """Why BIRD is not ready, "" if it is."""
        if not self._installed:
            return "nothing was rendered yet"
        missing = [path for path in sockets(self._paths).values() if not birdctl.there(path)]
        if missing:
            return f"nobody listens on {os.path.basename(missing[0])}"
        try:
            await self._tell_all()
        except PeerError as err:
            return str(err)
        found = await asyncio.to_thread(birdstatus.read, self._paths)
        return "" if found is not None else _DEAF
