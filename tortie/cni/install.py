"""Puts CNI onto a host and takes it away: plugins, credential, network configuration, in this order.

The program `install` of the image, the manifests' init container, with Calico's environment (reference:
CLI and Kubernetes, 4.2). Each file is replaced in one step. The configuration is written last and removed
first: while it is there the runtime counts on everything that it names.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence

from tortie.cni import conflist, credential
from tortie.cni.hostfiles import KUBECONFIG, TLS, HostFiles
from tortie.core import log
from tortie.core.errors import ConfigError, TortieError
from tortie.core.files import read_or_none, write_atomic
from tortie.datastore import nodename

_log = logging.getLogger(__name__)

OURS = ("calico", "calico-ipam")  # one program, which goes by the name it is called by
_INSTALLER = "install"  # stays in the image
_DEFAULT_NAME = "10-calico.conflist"
_LOOK = 5.0  # seconds between two looks at secrets that may be replaced


def main(words: Sequence[str] = (), env: Mapping[str, str] = os.environ) -> int:
    """`words`: "uninstall", or nothing. Exit code 1, with a line in the log, if it could not be done."""
    log.setup(env.get("LOG_LEVEL") or "info")
    if list(words) not in ([], ["uninstall"]):
        print("usage: install [uninstall]", file=sys.stderr)
        return 2
    try:
        files = HostFiles.from_env(env)
        if words:
            uninstall(env, files)
        else:
            install(env, files)
            while _flag(env, "SLEEP", True):
                time.sleep(_LOOK)  # a process of its own, which has nothing else to do
                install_tls(files)
    except TortieError as err:
        _log.critical("%s", err)
        return 1
    return 0


def install(env: Mapping[str, str], files: HostFiles) -> None:
    """Raises TortieError."""
    template = _template(env)
    name = _name(env, "CNI_CONF_NAME")
    tls = install_tls(files)
    install_programs(env, files)
    token = files.of_account("token")
    if token:
        asyncio.run(credential.write(env, files))
    node = nodename.read(env)[0]
    text = conflist.network_configuration(template, env, node, files.net, tls, token)
    _write(f"{files.net_here}/{name}", text.encode(), 0o600)
    if (old := _name(env, "CNI_OLD_CONF_NAME")) != name:
        _remove(f"{files.net_here}/{old}")


def uninstall(env: Mapping[str, str], files: HostFiles) -> None:
    """What is Calico's; other plugins stay, since other networks may use them. Raises ConfigError."""
    for name in (_name(env, "CNI_CONF_NAME"), _name(env, "CNI_OLD_CONF_NAME"), KUBECONFIG):
        _remove(f"{files.net_here}/{name}")
    shutil.rmtree(f"{files.net_here}/{TLS}", ignore_errors=True)
    for folder in filter(_writable, files.program_folders):
        for name in OURS:
            _remove(f"{folder}/{name}")


# --- parts ----------------------------------------------------------------------------------------


def install_programs(env: Mapping[str, str], files: HostFiles) -> None:
    """To every folder of the host that can be written to. Raises ConfigError if there is none."""
    update = _flag(env, "UPDATE_CNI_BINARIES", True)
    skipped = {_INSTALLER, *filter(None, env.get("SKIP_CNI_BINARIES", "").split(","))}
    folders = [folder for folder in files.program_folders if _writable(folder)]
    for folder in folders:
        for name in sorted({*OURS, *_listed(files.programs)} - (skipped - set(OURS))):
            source = f"{files.programs}/{OURS[0] if name in OURS else name}"
            if update or not os.path.exists(f"{folder}/{name}"):
                _copy(source, f"{folder}/{name}")
    baked_in = not update and any(
        all(os.path.exists(f"{folder}/{name}") for name in OURS) for folder in files.program_folders
    )
    if not folders and not baked_in:
        raise ConfigError("/host/opt/cni/bin", "", "no writable folder for the plugins is mounted")


def install_tls(files: HostFiles) -> list[str]:
    """Copy etcd's certificates, if any are mounted; which there are now. Raises ConfigError."""
    folder = f"{files.net_here}/{TLS}"
    given = [name for name in conflist.TLS_FILES if os.path.exists(f"{files.secrets_here}/{name}")]
    if not given:
        shutil.rmtree(folder, ignore_errors=True)
        return []
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
    except OSError as err:
        raise ConfigError("CNI_NET_DIR", folder, err.strerror or str(err)) from err
    for name in given:
        _copy(f"{files.secrets_here}/{name}", f"{folder}/{name}", 0o600)
    for name in set(conflist.TLS_FILES) - set(given):
        _remove(f"{folder}/{name}")
    return given


def _template(env: Mapping[str, str]) -> str:
    path = env.get("CNI_NETWORK_CONFIG_FILE", "")
    if not path:
        return env.get("CNI_NETWORK_CONFIG") or conflist.TEMPLATE
    return _read(path).decode("utf-8", "replace")


def _name(env: Mapping[str, str], variable: str) -> str:
    """A file's name in the runtime's folder. Raises ConfigError."""
    name = env.get(variable) or _DEFAULT_NAME
    if "/" in name or name.startswith("."):
        raise ConfigError(variable, name, "must be the name of a file")
    return name


def _flag(env: Mapping[str, str], variable: str, default: bool) -> bool:
    """As Go reads one. Raises ConfigError."""
    text = env.get(variable, "").lower()
    if text not in ("", "1", "t", "true", "0", "f", "false"):
        raise ConfigError(variable, text, "expected true or false")
    return default if not text else text in ("1", "t", "true")


# --- files ----------------------------------------------------------------------------------------


def _writable(folder: str) -> bool:
    return os.path.isdir(folder) and os.access(folder, os.W_OK)


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _read(path: str) -> bytes:
    try:
        content = read_or_none(path)
    except OSError as err:
        raise ConfigError("file", path, err.strerror or str(err)) from err
    if content is None:
        raise ConfigError("file", path, "does not exist")
    return content


def _copy(source: str, target: str, mode: int = 0o755) -> None:
    """Nothing is written where nothing differs: a runtime may be about to run it. Raises ConfigError."""
    content = _read(source)
    with contextlib.suppress(OSError):
        if read_or_none(target) == content and os.stat(target).st_mode & 0o7777 == mode:
            return
    _write(target, content, mode)


def _write(path: str, content: bytes, mode: int) -> None:
    try:
        write_atomic(path, content, mode, sync=True)  # half a plugin after a power cut would stay half
    except OSError as err:
        raise ConfigError("file", path, err.strerror or str(err)) from err
    _log.info("wrote %s", path)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
        _log.info("removed %s", path)
    except FileNotFoundError:
        _log.debug("%s was gone already", path)
    except OSError as err:
        raise ConfigError("file", path, err.strerror or str(err)) from err


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
