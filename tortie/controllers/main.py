"""`kube-controllers`: the controllers, or with `kube-controllers-health` or `check-status` their probe.

`component kube-controllers …`, as manifests spell it for Calico's combined binary, is understood, too.
"""

import os
import sys
from collections.abc import Sequence

from tortie.core import log
from tortie.core.errors import ConfigError

_USAGE = """usage: kube-controllers [--status-file FILE] [--health-port PORT]
       kube-controllers kube-controllers-health|check-status -r|-l [-f FILE]
       kube-controllers -v
"""


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    for prefix in ("component", "kube-controllers"):
        if words[:1] == [prefix]:
            words = words[1:]
    if words[:1] in (["kube-controllers-health"], ["check-status"]):
        from tortie.controllers import health  # a probe loads nothing else

        return health.check_status(words[1:])
    if words[:1] in (["-v"], ["--version"], ["version"]):
        from tortie import __version__

        print(__version__)
        return 0
    if words[:1] in (["-h"], ["--help"], ["help"]):
        print(_USAGE, end="")
        return 0
    try:
        status_file, port = _flags(words)
    except ConfigError as err:
        print(f"kube-controllers: {err}\n\n{_USAGE}", end="", file=sys.stderr)
        return 2
    log.setup(os.environ.get("LOG_LEVEL", "info"))
    from tortie.controllers.run import run  # a probe or a version loads none of it

    return run(os.environ, status_file, port)


def _flags(words: list[str]) -> tuple[str, int]:
    """Status file and health port, 0 for none. Raises ConfigError."""
    from tortie.controllers.health import STATUS_FILE

    given = {"--status-file": STATUS_FILE, "--health-port": "0"}
    left = [part for word in words for part in word.split("=", 1)]
    while left:
        name = left.pop(0)
        if name not in given or not left:
            raise ConfigError("argument", name, "unknown, or without a value")
        given[name] = left.pop(0)
    port = given["--health-port"]
    if not (port.isascii() and port.isdecimal() and int(port) < 65536):
        raise ConfigError("--health-port", port, "not a port from 1 to 65535, nor 0")
    return given["--status-file"], int(port)


if __name__ == "__main__":
    sys.exit(main())
