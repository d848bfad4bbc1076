"""Where the BGP side keeps its files; environment variables move them, so that a machine can run many nodes.

Read at each call, not at import: tests and the lab change the environment of their own children only.
"""

import os

LOG_LEVEL_VARIABLE = "TORTIE_EXABGP_LOG_LEVEL"  # DEBUG | INFO | WARNING | ERROR of ExaBGP itself


def config_dir() -> str:
    """Rendered configuration, as confd's in Calico: CALICO_CONFD_CONFIG_DIR."""
    return os.environ.get("CALICO_CONFD_CONFIG_DIR") or "/etc/calico/confd/config"


def run_dir() -> str:
    """Sockets and status, gone after a reboot: CALICO_RUN_DIR."""
    return os.environ.get("CALICO_RUN_DIR") or "/var/run/calico"


def exabgp_conf() -> str:
    """ExaBGP's configuration file."""
    return os.path.join(config_dir(), "exabgp.conf")


def bgp_json() -> str:
    """The agent's configuration file."""
    return os.path.join(config_dir(), "bgp.json")


def status_json() -> str:
    """What the agent reports; see status.py."""
    return os.path.join(run_dir(), "bgp-status.json")


def nudge_socket() -> str:
    """A datagram here, of any content, makes the agent read its configuration again."""
    return os.path.join(run_dir(), "bgp.sock")
