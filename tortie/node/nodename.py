"""Which name this node has, and the file in which the CNI plugin finds it.

Precedence (Calico, node/pkg/lifecycle/utils): NODENAME as given; the content of the nodename file;
HOSTNAME in lower case; the operating system's host name in lower case. All are trimmed except the
file, whose content is the name exactly as an earlier start decided it.
"""

import os
import re
import socket
from collections.abc import Mapping

from tortie.core.errors import ConfigError
from tortie.core.files import read_or_none, write_atomic
from tortie.datastore.validate.metadata import NAME

DEFAULT_FILE = "/var/lib/calico/nodename"
_MAX_NAME = 253  # a node's name is a resource name (RFC 1123 subdomain)


def file_path(env: Mapping[str, str]) -> str:
    return env.get("CALICO_NODENAME_FILE") or DEFAULT_FILE


def determine(env: Mapping[str, str], stored: str, os_hostname: str) -> tuple[str, str]:
    """(name, where it came from). Raises ConfigError if it cannot name a node."""
    candidates = [
        (env.get("NODENAME", "").strip(), "NODENAME"),
        (stored, "the nodename file"),
        (env.get("HOSTNAME", "").strip().lower(), "HOSTNAME"),
        (os_hostname.strip().lower(), "the host name"),
    ]
    for name, source in candidates:
        if name:
            if len(name) > _MAX_NAME or not re.fullmatch(NAME, name):
                raise ConfigError(source, name, "is not a valid node name (RFC 1123 subdomain)")
            return name, source
    raise ConfigError("NODENAME", "", "cannot determine the node's name")


def read(env: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """determine() with this machine's file and host name."""
    stored = read_or_none(file_path(env)) or b""
    return determine(env, stored.decode("utf-8", "replace"), socket.gethostname())


def write(name: str, env: Mapping[str, str] = os.environ) -> None:
    """Let the CNI plugin start: it refuses to work until this file exists."""
    path = file_path(env)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_atomic(path, name, 0o644, sync=True)
