"""Starts ExaBGP 5 with the settings the agent needs: `python -m tortie.bgp.exabgp [CONFIG]`.

With `--validate CONFIG...` it only has ExaBGP check the files.

This is the process that node supervision runs; it starts the agent as ExaBGP's helper. ExaBGP runs
in this very process, with some of its edges replaced below:

- The reactor sleeps while nothing happens. Its own loop wakes 100 times a second, or 1,000 times at
  the speed that sending routes needs: 1.4 or 3.6 % of a core, idle. Ours waits for the sockets and
  never waits while commands or routes are in hand.
- A reload is not dropped because a neighbour that is down has routes in its queue.
- A lost peer is dialled every few seconds, as BIRD does, not after a minute; a dial into nothing is
  given up after seconds, not after the kernel's two minutes.
- The minimum TTL of one neighbour (RFC 5082) is not put on the listening socket, which all share,
  but on the accepted connection.
- What it remembers of a peer's announcements, for a helper that starts anew, has the helper's own limit.
- Its log lines have our format, and those of level DEBUG are not even made where nobody wants them: it
  makes three for each prefix that it receives, a fifth of the time that takes.
- The machine's domain name is not asked of DNS, which where none answers takes 10 s each time ExaBGP
  starts or checks a file; nothing in our configuration uses it.

The rest is settings, in environment(). Only this module may import ExaBGP.
"""

import importlib
import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from tortie.bgp.config import prefix_limit
from tortie.core.log import LineFormatter
from tortie.core.paths import Paths

_RETRY_CAP = 5  # seconds between dials, BIRD's connect retry time
_SYN_RETRIES = 2  # a dial is given up after 1 + 2 + 4 s without an answer
_TCP_SYNCNT = 7  # linux/tcp.h
_VALIDATE = "--validate"
_LOG_LEVEL = "TORTIE_EXABGP_LOG_LEVEL"  # DEBUG | INFO | WARNING | ERROR of ExaBGP itself
_WAIT_FOR_CONFIG = 0.2  # seconds between looks for the file that confd makes


def argv(config: str = "") -> list[str]:
    """The command line that supervision starts; the environment needs nothing but its own."""
    return [sys.executable, "-m", "tortie.bgp.exabgp", config or Paths.from_env().exabgp_conf]


def validation_argv(config: str) -> list[str]:
    """A command that ends with status 0 exactly if ExaBGP accepts the file; run it in environment()."""
    return [sys.executable, "-m", "tortie.bgp.exabgp", _VALIDATE, config]


def environment(given: Mapping[str, str], log_level: str = "WARNING") -> dict[str, str]:
    """`given` with ExaBGP's settings; `log_level` is DEBUG, INFO, WARNING or ERROR.

    INFO writes a line for every route that is sent.
    """
    settings = {
        "EXABGP_ENVFILE": "",  # nothing but this function decides
        "exabgp.daemon.user": "root",  # ExaBGP would drop to nobody, and its helper could set no routes
        "exabgp.daemon.drop": "false",
        "exabgp.api.cli": "false",  # no named pipes: the agent is the only one to give commands
        "exabgp.api.ack": "false",  # the agent trusts what it sees sent, not what was queued
        "exabgp.api.respawn": "true",
        "exabgp.api.terminate": "true",  # after a failed write to the helper it would drop all peers for good
        "exabgp.api.chunk": "100",  # routes of an adj-RIB listing per turn
        "exabgp.api.show-routes-format": "v2",  # with attributes
        "exabgp.tcp.bind": "",  # each neighbour says `listen`, so that listening follows a reload
        "exabgp.reactor.speed": "10",  # 100 ms between looks at timers and at the listening socket
        "exabgp.log.level": log_level,
        "exabgp.log.destination": "stderr",
    }
    clean = {key: value for key, value in given.items() if not key.startswith(("exabgp.", "exabgp_"))}
    return clean | settings


def main() -> None:
    """Become ExaBGP, as soon as there is a configuration; returns never."""
    if sys.argv[1:2] == [_VALIDATE]:
        _validate(sys.argv[2:])
    config = sys.argv[1] if len(sys.argv) > 1 else Paths.from_env().exabgp_conf
    while not os.path.exists(config):
        time.sleep(_WAIT_FOR_CONFIG)
    level = os.environ.get(_LOG_LEVEL, "WARNING")
    os.environ.update(environment(os.environ, level))
    _know_domain()
    _replace_edges()
    from exabgp.application import server
    from exabgp.environment import getenv
    from exabgp.logger import log

    log.init(getenv())
    if level != "DEBUG":
        log.debug = staticmethod(_say_nothing)
    server.run("", [config])  # not its main(), which complains of a missing environment file


def _validate(configs: list[str]) -> None:
    """Ends the process: with status 0 if all is well."""
    _know_domain()
    from exabgp.application.main import main as exabgp

    sys.argv = ["exabgp", "validate", *configs]
    sys.exit(exabgp())


def _know_domain() -> None:
    """Must come before ExaBGP's other imports: they ask for the name as they are imported."""
    from exabgp.util import dns

    vars(dns)["__domain_name"] = "localdomain"


def _replace_edges() -> None:
    """Put the subclasses in the places of their bases. ExaBGP reads its settings when it is imported."""
    from exabgp import rib
    from exabgp.application import server
    from exabgp.bgp.fsm import FSM
    from exabgp.reactor import listener, peer, protocol
    from exabgp.reactor.delay import Delay
    from exabgp.reactor.listener import Listener
    from exabgp.reactor.loop import Reactor
    from exabgp.reactor.network.outgoing import Outgoing
    from exabgp.reactor.network.tcp import set_minimum_ttl
    from exabgp.rib.incoming import IncomingRIB

    limit = prefix_limit(os.environ)

    class PatientReactor(Reactor):  # type: ignore[misc]
        def __init__(self, configuration: Any) -> None:
            super().__init__(configuration)
            self.listener = SharedListener(self)

        def _wait_for_io(self, sleeptime: int) -> Any:
            busy = not self.asynchronous.ready() or self._pending_adjribout()
            return super()._wait_for_io(0 if busy else sleeptime)

        def _pending_adjribout(self) -> bool:
            """Whether a neighbour that is up has routes yet to be sent."""
            return any(
                one.fsm == FSM.ESTABLISHED and one.neighbor.rib.outgoing.pending()
                for one in self._peers.values()
            )

    class SharedListener(Listener):  # type: ignore[misc]
        def listen_on(self, local: Any, remote: Any, port: int, md5: Any, base64: Any, _ttl: Any) -> Any:
            return super().listen_on(local, remote, port, md5, base64, None)

    class EagerDelay(Delay):  # type: ignore[misc]
        def increase(self) -> None:
            super().increase()
            self._next: int = min(self._next, _RETRY_CAP)

    class BriefOutgoing(Outgoing):  # type: ignore[misc]
        def _setup(self) -> Any:
            issue = super()._setup()
            if self.io is not None:
                import socket

                self.io.setsockopt(socket.IPPROTO_TCP, _TCP_SYNCNT, _SYN_RETRIES)
            return issue

    class LimitedRIB(IncomingRIB):  # type: ignore[misc]
        def update_cache(self, change: Any) -> None:
            known = self._seen.get(change.nlri.family().afi_safi(), ())
            if not limit or len(known) < limit or change.index() in known:
                super().update_cache(change)

    sending_only = listener.set_accepted_ttl

    def set_accepted_ttl(connection: Any, neighbor: Any) -> None:
        sending_only(connection, neighbor)
        if connection.io is not None:
            set_minimum_ttl(connection.io, connection.afi, connection.peer, neighbor["incoming-ttl"])

    vars(importlib.import_module("exabgp.logger.option"))["formater"] = lambda _short, _destination: _log_line
    rib.IncomingRIB = LimitedRIB
    server.Reactor = PatientReactor
    peer.Delay = EagerDelay
    protocol.Outgoing = BriefOutgoing
    listener.set_accepted_ttl = set_accepted_ttl


def _log_line(message: str, source: str, level: str, _when: object) -> str:
    """What ExaBGP has to say, as a line of ours: it writes one at once, so the time is now."""
    number = logging.getLevelNamesMapping().get(level, logging.INFO)
    record = logging.LogRecord(f"exabgp.{source}", number, "", 0, message, None, None)
    record.levelname = "FATAL" if level == "CRITICAL" else level
    return LineFormatter().format(record)


def _say_nothing(*_arguments: object, **_named: object) -> None:
    pass


if __name__ == "__main__":
    main()
