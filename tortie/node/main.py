"""`calico-node`: the node's one command; what it does is chosen by its first argument, as in Calico.

Without an argument it runs the whole node. Both the old spelling (`-felix`) and the newer one
(`component node startup`, `component felix`) are understood, with one dash or two, because manifests
and runbooks of both generations exist.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence

from tortie.core import log

_USAGE = """usage: calico-node [ROLE | CHECK...]

without arguments: start-up, then felix, confd, ExaBGP, tunnel addresses and the CNI server, supervised

roles:   -startup  -monitor-addresses  -felix  -confd  -cni-server  -shutdown  -v
         -allocate-tunnel-addrs  -install-cni [uninstall]
checks:  -felix-live  -felix-ready  -bird-live  -bird-ready  -bird6-live  -bird6-ready
         [-threshold-time 30s]
"""


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None and os.path.basename(sys.argv[0]) == "install":  # /opt/cni/bin/install of Calico's image
        words = ["install-cni", *words]
    if words[:3] == ["component", "cni", "install"]:
        words = ["install-cni", *words[3:]]
    if words[:2] == ["component", "node"]:
        words = words[2:]
    elif words[:1] == ["component"]:
        words = words[1:]
    if not words:
        return _run_node()
    role = words[0].lstrip("-")
    if role == "install-cni":
        from tortie.cni import install

        return install.main(words[1:])
    if role in _ROLES:
        return _ROLES[role]()
    if role == "health" or role.split("-")[0] in ("felix", "bird", "bird6", "threshold"):
        from tortie.node import probe

        return probe.main(words[1:] if role == "health" else words)
    if role in ("h", "help"):
        print(_USAGE, end="")
        return 0
    print(f"calico-node: unknown argument {words[0]!r}\n\n{_USAGE}", end="", file=sys.stderr)
    return 2


def _set_up_logging() -> None:
    log.setup(os.environ.get("CALICO_STARTUP_LOGLEVEL", "info"))


def _run_node() -> int:
    _set_up_logging()
    # A container's first process does not hear it before it has a handler, and importing takes a while.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from tortie.node import run

    return run.run()


def _startup() -> int:
    _set_up_logging()
    from tortie.node import startup

    return startup.main()


def _monitor_addresses() -> int:
    _set_up_logging()
    from tortie.node import startup

    return startup.main(refresh=True)


def _allocate_tunnel_addresses() -> int:
    from tortie.node import tunneladdresses

    return tunneladdresses.main()


def _felix() -> int:
    from tortie.felix.daemon import main as felix

    return felix() or 0


def _confd() -> int:
    from tortie.confd.daemon import main as confd

    return confd() or 0


def _cni_server() -> int:
    from tortie.cni.server import main as server

    return server() or 0


def _shutdown() -> int:
    from tortie.node import shutdown

    return shutdown.main()


def _version() -> int:
    from tortie import __version__

    print(__version__)
    return 0


_ROLES: dict[str, Callable[[], int]] = {  # role -> what it runs
    "startup": _startup,
    "monitor-addresses": _monitor_addresses,
    "allocate-tunnel-addrs": _allocate_tunnel_addresses,
    "felix": _felix,
    "confd": _confd,
    "cni-server": _cni_server,
    "shutdown": _shutdown,
    "v": _version,
    "version": _version,
}

if __name__ == "__main__":
    sys.exit(main())
