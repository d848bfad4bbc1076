"""Starts ExaBGP 5 with the settings the agent needs: `python -m tortie.bgp.exabgp [CONFIG]`.

With `--validate CONFIG...` it only has ExaBGP check the files.

This is the process that node supervision runs; it starts the agent as ExaBGP's helper. ExaBGP runs
in this very process, with some of its edges replaced below:

- The reactor sleeps while nothing happens. Its own loop wakes 100 times a second, or 1,000 times at
  the speed that sending routes needs: 1.4 or 3.6 % of a core, idle. Ours waits for the sockets and
  never waits while commands or routes are in hand; of a peer whose socket is full it waits for room.
- A reload is not dropped because a neighbour that is down has routes in its queue.
- A lost peer is dialled every few seconds, as BIRD does, not after a minute; a dial into nothing is
  given up after seconds, not after the kernel's two minutes.
- The minimum TTL of one neighbour (RFC 5082) is not put on the listening socket, which all share,
  but on the accepted connection.
- Why a connection could not be had or ended is part of its report: refused, timed out, reset …
- Prefixes that come together are read together, and what is remembered of them, for a helper that starts
  anew, has the helper's own limit: exabgp_prefixes.py.
- The family of a prefix is looked up, not made several times for each: a quarter of the time that one costs.
- A route that goes to many neighbours is parsed, packed and described once, not for each: exabgp_routes.py.
- Its log lines have our format, and those of level DEBUG are not even made where nobody wants them: it
  makes three for each prefix that it receives, a fifth of the time that takes.
- The machine's domain name is not asked of DNS, which where none answers takes 10 s each time ExaBGP
  starts or checks a file; nothing in our configuration uses it.

The rest is settings, in environment(). Only this module and those two may import ExaBGP.
"""

import errno
import importlib
import logging
import os
import re
import select
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tortie.core.log import LineFormatter
from tortie.core.paths import Paths

_RETRY_CAP = 5  # seconds between dials, BIRD's connect retry time
_SYN_RETRIES = 2  # a dial is given up after 1 + 2 + 4 s without an answer
_TCP_SYNCNT = 7  # linux/tcp.h
_IP_FREEBIND = 15  # linux/in.h; holds for IPv6 sockets, too
_VALIDATE = "--validate"
_LOG_LEVEL = "TORTIE_EXABGP_LOG_LEVEL"  # DEBUG | INFO | WARNING | ERROR of ExaBGP itself
CONNECTION_LOST = "closing connection"  # ExaBGP's reason for the end of a session that no NOTIFICATION ended
_ERRNO = re.compile(r"\bE[A-Z]{3,}\b")  # in the text of its errors
_FOR_ROOM = select.POLLIN | select.POLLPRI | select.POLLOUT  # what a peer whose socket is full waits for
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
    _replace_loop()
    _replace_dials()
    _replace_families()
    from tortie.bgp import exabgp_prefixes, exabgp_routes  # not before its settings are made

    exabgp_prefixes.replace()
    exabgp_routes.replace()
    vars(importlib.import_module("exabgp.logger.option"))["formater"] = lambda _short, _destination: _log_line


def _replace_loop() -> None:
    """The reactor, and the sockets that it listens on."""
    from exabgp.application import server
    from exabgp.bgp.fsm import FSM
    from exabgp.reactor import listener, peer
    from exabgp.reactor.listener import Listener
    from exabgp.reactor.loop import ACTION, Reactor
    from exabgp.reactor.network.tcp import set_minimum_ttl

    from tortie.bgp import exabgp_routes

    class PatientReactor(Reactor):  # type: ignore[misc]
        def __init__(self, configuration: Any) -> None:
            super().__init__(configuration)
            self.listener = SharedListener(self)
            self.asynchronous = exabgp_routes.PlainASYNC()

        def _wait_for_io(self, sleeptime: int) -> Any:
            for one in self._peers.values():
                if one.full:
                    self._poller.register(one.socket(), _FOR_ROOM)  # until it has work, or reads, again
            busy = not self.asynchronous.ready() or self._pending_adjribout()
            return super()._wait_for_io(0 if busy else sleeptime)

        def _pending_adjribout(self) -> bool:
            """Whether a neighbour that is up and listens has routes yet to be sent."""
            return any(
                one.fsm == FSM.ESTABLISHED and not one.full and one.neighbor.rib.outgoing.pending()
                for one in self._peers.values()
            )

    class SharedListener(Listener):  # type: ignore[misc]
        def _new_socket(self, ip: Any) -> Any:
            """Of an address that may yet come: that of workloads is there when the first of them is."""
            made = super()._new_socket(ip)
            made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            return made

        def listen_on(self, local: Any, remote: Any, port: int, md5: Any, base64: Any, _ttl: Any) -> Any:
            return super().listen_on(local, remote, port, md5, base64, None)

        def incoming(self) -> bool:
            """Also when some are left: a round ends with the first one for whom there is no session.

            Until the next round nobody would answer the others, nor take any more from where they came in.
            """
            return bool(super().incoming() or self._accepted)

    sending_only = listener.set_accepted_ttl

    def set_accepted_ttl(connection: Any, neighbor: Any) -> None:
        sending_only(connection, neighbor)
        if connection.io is not None:
            set_minimum_ttl(connection.io, connection.afi, connection.peer, neighbor["incoming-ttl"])

    run = peer.Peer.run

    def run_if_room(self: Any) -> Any:
        """`full`: it has something to say and cannot; to be asked again at once would not help."""
        action = run(self)
        up = self.fsm == FSM.ESTABLISHED and self.socket() != -1
        self.full = up and action == ACTION.NOW and not self.proto.connection.writing()
        return ACTION.LATER if self.full else action

    peer.Peer.full = False
    peer.Peer.run = run_if_room
    server.Reactor = PatientReactor
    listener.set_accepted_ttl = set_accepted_ttl


def _replace_dials() -> None:
    """How a peer is dialled, and what is said when that fails or the connection ends."""
    from exabgp.bgp.fsm import FSM
    from exabgp.reactor import peer, protocol
    from exabgp.reactor.delay import Delay
    from exabgp.reactor.network import outgoing
    from exabgp.reactor.network.error import NetworkError
    from exabgp.reactor.network.outgoing import Outgoing

    class EagerDelay(Delay):  # type: ignore[misc]
        def increase(self) -> None:
            super().increase()
            self._next: int = min(self._next, _RETRY_CAP)

    class BriefOutgoing(Outgoing):  # type: ignore[misc]
        def _connect(self) -> Any:
            if issue := super()._connect():
                raise NetworkError(str(issue))  # it would try again at once, and never say why
            return None

        def _setup(self) -> Any:
            issue = super()._setup()
            if self.io is not None:
                self.io.setsockopt(socket.IPPROTO_TCP, _TCP_SYNCNT, _SYN_RETRIES)
            return issue

    def is_connected(io: Any) -> Iterator[tuple[bool, str]]:
        """Whether a dial has succeeded; ExaBGP takes one that was refused for one that has."""
        poller = select.poll()
        poller.register(io, select.POLLOUT)
        while not poller.poll(0):
            yield False, "waiting"
        if error := io.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            io.close()
            raise NetworkError(errno.errorcode.get(error, str(error)))
        yield True, "connected"

    reset = peer.Peer._reset

    def reset_with_reason(self: Any, message: str = "", error: Any = "") -> None:
        if message == CONNECTION_LOST and (found := _ERRNO.search(str(error))):
            message = f"{message}: {found[0]}"
            if self.fsm == FSM.IDLE:  # it was dialling: that alone is not reported
                self.reactor.processes.down(self.neighbor, message)
        reset(self, message, error)

    peer.Peer._reset = reset_with_reason
    vars(outgoing)["ready"] = is_connected
    peer.Delay = EagerDelay
    protocol.Outgoing = BriefOutgoing


def _replace_families() -> None:
    """How families and their names are looked up."""
    from exabgp.protocol import family as families

    known: dict[Any, Any] = {}  # (afi, safi) -> the family

    def family(self: Any) -> Any:
        if (found := known.get((self.afi, self.safi))) is None:
            found = known[self.afi, self.safi] = families.Family(self.afi, self.safi)
        return found

    def remembering(kind: Any, make: Any) -> Any:
        def create(value: int) -> Any:
            found = kind.cache.get(value)
            return make(value) if found is None else found

        return staticmethod(create)

    families.AFI.create = remembering(families.AFI, families._AFI)
    families.SAFI.create = remembering(families.SAFI, families._SAFI)
    families.Family.family = family


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
