"""A command's connection to the datastore, and the check that this program suits the cluster."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable

from tortie import __version__
from tortie.calicoctl.call import Call
from tortie.calicoctl.errors import CommandError, Refusal
from tortie.calicoctl.flags import CONFIG_PATH
from tortie.core.errors import ConfigError, DatastoreError, ResourceDoesNotExist
from tortie.datastore import config as datastore_config
from tortie.datastore.client import Client
from tortie.datastore.connect import connect
from tortie.datastore.types.cluster import ClusterInformation

_SILENCE = logging.NullHandler()
_OVERRIDE = "Use --allow-version-mismatch to override"


class Session:
    """A connection is made at its first use; a bad configuration is told then, not before."""

    def __init__(self, call: Call) -> None:
        """Raises Refusal if a configuration file was asked for that does not exist."""
        self._call = call
        self._client: Client | None = None
        self._problem: ConfigError | OSError | None = None
        self.datastore_type = self.kubeconfig = ""  # of the configuration, if it is any good
        path = call.flags["config"] or CONFIG_PATH
        if path != CONFIG_PATH and not os.path.exists(path):
            raise Refusal(f"Error reading config file: {path}")
        dry_run = call.flags.get("dry-run", "none")
        if dry_run not in ("none", "client", "server"):
            raise CommandError(f'invalid value "{dry_run}" for --dry-run. Use none, client or server')
        self.dry_run = dry_run != "none"
        try:
            config = datastore_config.load(path, call.env)
            self.datastore_type, self.kubeconfig = config.type, config.kubeconfig
            self._client = connect(config)
            if self.dry_run:
                from tortie.calicoctl.rehearsal import Rehearsal  # most commands mean it

                self._client = Client(Rehearsal(self._client.backend))
        except (ConfigError, OSError) as err:
            self._problem = err

    @property
    def problem(self) -> str:
        """Why there is no client, or ''."""
        if isinstance(self._problem, ConfigError):
            # The reason of a file's error begins with the file.
            told = self._problem.reason.startswith("syntax error in ")
            return self._problem.reason if told else str(self._problem)
        return str(self._problem or "")

    def client(self) -> Client:
        """Raises Refusal if the configuration is no good."""
        if self._client is None:
            raise Refusal(f"Failed to create Calico API client: {self.problem}")
        return self._client

    async def check_version(self) -> None:
        """Raises CommandError if the cluster is of another version and that was not allowed."""
        if self._call.flags["allow-version-mismatch"] or self._client is None:
            return
        try:
            cluster = await self._client.get(ClusterInformation, "default")
        except ResourceDoesNotExist:
            return
        except DatastoreError as err:
            raise CommandError(
                f"unable to get Cluster Information to verify version mismatch: {err}\n{_OVERRIDE}"
            ) from err
        theirs = _release(cluster.spec.calicoVersion)
        if theirs and theirs != _release(__version__):
            raise CommandError(
                f"version mismatch.\nClient Version:   {__version__}\nCluster Version:  {theirs}\n{_OVERRIDE}"
            )

    def tell_done(self, text: str) -> None:
        """Print what was done, marked as such if it was only tried."""
        mark = " (dry run)\n" if self.dry_run else "\n"
        self._call.out(text.replace("\n", mark))

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()


def _release(version: str) -> str:
    """v3.33.0-12-gabc -> 3.33.0"""
    return version.removeprefix("v").partition("-")[0]


def run(call: Call, work: Callable[[Session], Awaitable[None]]) -> None:
    """Run a command's work in a session. Raises what the work raises."""
    # Without --log-level this program says everything itself; Python would print warnings on its own.
    logging.getLogger("tortie").addHandler(_SILENCE)

    async def whole() -> None:
        session = Session(call)
        try:
            await work(session)
        finally:
            await session.close()

    asyncio.run(whole())
