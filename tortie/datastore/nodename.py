"""Which name this node has: one rule, which every process of the node asks.

Precedence (Calico, node/pkg/lifecycle/utils): NODENAME as given; the content of the nodename file, where
an earlier start wrote what it decided; HOSTNAME in lower case; the operating system's host name in lower
case. White space around it does not count.
"""

import os
import re
import socket
from collections.abc import Mapping

from tortie.core.errors import ConfigError
from tortie.core.files import read_or_none, write_atomic
from tortie.core.paths import Paths
from tortie.datastore.validate.metadata import NAME

_MAX_NAME = 253  # a node's name is a resource name (RFC 1123 subdomain)


def checked(name: str, where: str) -> str:
    """The name, if a Node can have it. Raises ConfigError that names `where` it came from."""
    if len(name) > _MAX_NAME or not re.fullmatch(NAME, name):
        raise ConfigError(where, name[: _MAX_NAME + 1], "is not a valid node name (RFC 1123 subdomain)")
    return name


def determine(env: Mapping[str, str], stored: str, os_hostname: str) -> tuple[str, str]:
    """(name, where it came from). Raises ConfigError if it cannot name a node."""
    candidates = [
        (env.get("NODENAME", "").strip(), "NODENAME"),
        (stored.strip(), "the nodename file"),
        (env.get("HOSTNAME", "").strip().lower(), "HOSTNAME"),
        (os_hostname.strip().lower(), "the host name"),
    ]
    for name, source in candidates:
        if name:
            return checked(name, source), source
    raise ConfigError("NODENAME", "", "cannot determine the node's name")


def read(env: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """determine() with this machine's file and host name."""
    stored = read_or_none(Paths.from_env(env).nodename) or b""
    return determine(env, stored.decode("utf-8", "replace"), socket.gethostname())


def write(name: str, env: Mapping[str, str] = os.environ) -> None:
    """Let the CNI plugin start: it refuses to work until this file exists."""
    path = Paths.from_env(env).nodename
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_atomic(path, name, 0o644, sync=True)
