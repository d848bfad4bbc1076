"""How ExaBGP is started, and that the places where we replace its parts still exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tortie.bgp import exabgp
from tortie.core.paths import Paths

pytestmark = pytest.mark.unit


def test_the_command_line() -> None:
    assert exabgp.argv("/x/y.conf") == [sys.executable, "-m", "tortie.bgp.exabgp", "/x/y.conf"]
    assert exabgp.argv()[-1] == Paths.from_env().exabgp_conf


def test_the_environment_is_ours_alone() -> None:
    given = {"PATH": "/bin", "exabgp.daemon.user": "nobody", "exabgp_api_ack": "true"}
    made = exabgp.environment(given)
    assert made["PATH"] == "/bin" and "exabgp_api_ack" not in made
    assert made["exabgp.daemon.user"] == "root" and made["exabgp.daemon.drop"] == "false"
    assert made["exabgp.api.terminate"] == "true" and made["exabgp.api.respawn"] == "true"
    assert exabgp.environment({}, "DEBUG")["exabgp.log.level"] == "DEBUG"


_PROBE = """
import os
from tortie.bgp import exabgp
os.environ.update(exabgp.environment(os.environ))
exabgp._replace_edges()
from exabgp.application import server
from exabgp.bgp.fsm import FSM
from exabgp.environment import getenv
from exabgp.reactor import listener, peer, protocol
from exabgp.reactor.loop import Reactor

assert server.Reactor is not Reactor and issubclass(server.Reactor, Reactor)
env = getenv()
assert env.api.chunk == 100 and env.api.show_routes_format == "v2" and not env.api.ack and env.api.terminate
assert env.daemon.user == "root" and not env.daemon.drop and env.tcp.bind == []

delay = peer.Delay()
for _ in range(50):
    delay.increase()
assert delay._next == 5, delay._next

class Configuration:
    neighbors = {}

reactor = server.Reactor(Configuration())
assert type(reactor.listener).__name__ == "SharedListener"
assert reactor._sleep_time == 0.1 and not reactor._pending_adjribout()

class Rib:
    class outgoing:
        pending = staticmethod(lambda: True)

class Neighbor:
    rib = Rib

class Down:
    neighbor, fsm, full = Neighbor, FSM.IDLE, peer.Peer.full

reactor._peers["down"] = Down
assert not reactor._pending_adjribout(), "routes for a peer that is down hold up nothing"
Down.fsm = FSM.ESTABLISHED
assert reactor._pending_adjribout()
Down.full = True
assert not reactor._pending_adjribout(), "nor do those for one that does not read"
assert peer.Peer.run.__module__ == "tortie.bgp.exabgp"
assert protocol.Outgoing.__name__ == "BriefOutgoing"
assert listener.set_accepted_ttl.__module__ == "tortie.bgp.exabgp"

from exabgp.rib import RIB
made = RIB("one", True, True, set())
assert type(made.incoming).__name__ == "LimitedRIB" and type(made.outgoing).__name__ == "SharingRIB"
assert peer.Protocol.__name__ == "SharingProtocol"
assert type(reactor.asynchronous).__name__ == "PlainASYNC" and not reactor.asynchronous.run()

from exabgp.logger import log
log.init(env)
done = []
reactor.asynchronous.schedule("agent", "a command", (done.append(number) for number in range(3)))
while reactor.asynchronous.run():
    pass
assert done == [0, 1, 2], done

from exabgp.reactor.api.command import Command
for command in ("announce attributes", "withdraw attributes"):
    assert Command.callback["text"][command].__module__ == "tortie.bgp.exabgp_routes", command
"""


def test_the_replaced_parts_are_in_place() -> None:
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


_STRANGERS = """
import os, socket
from tortie.bgp import exabgp
os.environ.update(exabgp.environment(os.environ))
exabgp._replace_edges()
from exabgp.application import server
from exabgp.environment import getenv
from exabgp.logger import log
from exabgp.protocol.ip import IP
log.init(getenv())

class Configuration:
    neighbors = {}

reactor = server.Reactor(Configuration())
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
strangers = []
for address in ("127.0.0.1", "127.0.0.2"):
    assert reactor.listener.listen_on(IP.create(address), None, port, None, False, None)
    strangers.append(socket.create_connection((address, port)))
for _ in range(100):
    if reactor.listener.incoming():
        reactor.asynchronous.schedule("", "", reactor.listener.new_connections())
    reactor.asynchronous.run()
for stranger in strangers:
    stranger.setblocking(False)
    said = stranger.recv(4096)
    assert said[18:21] == bytes([3, 6, 3]), said  # NOTIFICATION, Cease, peer de-configured
"""


def test_strangers_who_come_at_the_same_time_are_all_refused() -> None:
    """One of them would wait for our OPEN otherwise, and take none of our own calls meanwhile."""
    done = subprocess.run([sys.executable, "-c", _STRANGERS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["tortie.bgp.agent", "tortie.bgp.status"])
def test_the_agent_imports_only_what_it_needs(module: str) -> None:
    """It starts while packets wait; and calicoctl reads its status."""
    heavy = "grpc", "etcd3", "jinja2", "yaml", "exabgp", "tortie.datastore", "click"
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert done.stdout.strip() == "[]"


def test_its_log_lines_are_ours() -> None:
    program = (
        "import os; from tortie.bgp import exabgp; os.environ.update(exabgp.environment(os.environ)); "
        "exabgp._replace_edges(); from exabgp.environment import getenv; from exabgp.logger import log; "
        "log.init(getenv()); log.warning(lambda: 'gone\\rforged %s\\nmore', 'outgoing-8'); "
        "log.critical(lambda: 'x', 'network'); log.info(lambda: 'unseen', 'network')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stdout
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} "
    wanted = [
        r"\[WARNING\]\[\d+\] exabgp\.outgoing-8 0: gone\\rforged %s",
        r"\[WARNING\]\[\d+\] exabgp\.outgoing-8 0: more",
        r"\[FATAL\]\[\d+\] exabgp\.network 0: x",
    ]
    found = done.stderr.splitlines()
    assert len(found) == len(wanted), found
    for line, pattern in zip(found, wanted, strict=True):
        assert re.fullmatch(stamp + pattern, line), line


def test_no_dns_is_asked(tmp_path: Path) -> None:
    """Where a name server is set but none answers, each question would take ten seconds."""
    config = tmp_path / "exabgp.conf"
    config.write_text("process a { run /bin/cat; encoder json; }\n")
    program = (
        "import socket, sys; socket.getfqdn = None; "
        f"sys.argv = ['exabgp', '--validate', {str(config)!r}]; "
        "from tortie.bgp import exabgp; exabgp.main()"
    )
    command = [sys.executable, "-c", program]
    settings = exabgp.environment(os.environ)
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
