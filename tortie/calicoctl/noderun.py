"""`node run`: the node's container, started with docker. (Reference: CLI, 3.4.)

What is asked becomes one docker command line (pure); the host is then made ready for it and it is run.
"""

import asyncio
import contextlib
import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tortie.calicoctl import gather, rootonly
from tortie.calicoctl.call import Call
from tortie.calicoctl.errors import CommandError, Refusal, printable
from tortie.calicoctl.flags import CONFIG_PATH
from tortie.core import children
from tortie.core.errors import ConfigError
from tortie.datastore import config as datastore_config
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.types.meta import ASNumber

_STARTED = "Calico node started successfully"
_FOLLOW = 10.0  # seconds to wait for that line, as Calico does
_DOWNLOAD = 600.0  # seconds `docker run` may take: it may have to fetch the image first
_CERTIFICATES = "/etc/calico/certs"  # in the container
_MODULES = ("modprobe", "-a", "xt_set", "ip6_tables")


def run(call: Call) -> None:
    flags = call.flags
    check(flags)
    try:
        datastore = datastore_config.load(flags["config"] or CONFIG_PATH, call.env)
    except (ConfigError, OSError) as err:
        raise CommandError(f"error executing command: invalid config file: {err}") from err
    if datastore.type != "etcdv3":
        raise CommandError("error executing command: unsupported backend specified in config")
    name = flags["name"] or socket.gethostname().strip().lower()
    if not name:
        raise CommandError("error executing command: unable to determine node name")
    command = docker_command(flags, name, datastore)
    if flags["dryrun"]:
        call.out(_dry_run(command, init_system=flags["init-system"]))
        return
    rootonly.require()
    if not call.env.get("CALICO_CTL_CONTAINER"):
        _prepare_host(call)
    asyncio.run(_start(call, command))


# --- what is asked, all pure but the look-up of a name --------------------------------------------


def check(flags: Mapping[str, Any]) -> None:
    """Raises Refusal, CommandError for an option that cannot be."""
    for name, version in (("ip", 4), ("ip6", 6)):
        if (text := flags[name]) not in ("", "autodetect"):
            _check_address(name, text, version)
    if flags["as"]:
        _as_number(flags["as"])
    if flags["backend"] not in ("bird", "none"):
        raise CommandError(f"error executing command: unknown backend '{flags['backend']}'")
    _check_method(flags["ip-autodetection-method"], 4)
    _check_method(flags["ip6-autodetection-method"], 6)


def _check_address(name: str, text: str, version: int) -> None:
    try:
        found = ipaddress.ip_address(text).version
    except ValueError:
        raise Refusal(f"Error executing command: invalid IP address specified: {text}") from None
    if found != version:
        raise CommandError(f"error executing command: --{name} is wrong IP version")


def _as_number(text: str) -> int:
    try:
        return ASNumber(text)
    except ValueError:
        raise Refusal(f"Error executing command: invalid AS Number specified: {text}") from None


def _check_method(method: str, version: int) -> None:
    kind, equals, value = method.partition("=")
    if method == "first-found":
        return
    if not equals or kind not in ("can-reach", "interface", "skip-interface"):
        raise CommandError(f"error executing command: invalid IP autodetection method: {method}")
    if kind == "can-reach":
        _check_destination(value, version)
        return
    for expression in value.split(","):
        try:
            re.compile(expression)
        except re.error:
            raise CommandError(
                "error executing command: invalid interface regex specified for IP autodetection: "
                f"{expression}"
            ) from None


def _check_destination(name: str, version: int) -> None:
    try:
        found = socket.getaddrinfo(name, None)
    except OSError:
        raise CommandError(
            f"error executing command: cannot resolve address specified for IP autodetection: {name}"
        ) from None
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    if not any(entry[0] == family for entry in found):
        raise CommandError(
            "error executing command: address for IP autodetection does not resolve to an "
            f"IPv{version} address: {name}"
        )


@dataclass(frozen=True, slots=True)
class _Container:
    env: dict[str, str]  # variable -> value, in the container
    volumes: list[tuple[str, str]]  # path on the host, path in the container


def docker_command(flags: Mapping[str, Any], name: str, datastore: DatastoreConfig) -> list[str]:
    """The command line that starts the container."""
    inside = _container(flags, name, datastore)
    command = ["docker", "run", "--net=host", "--privileged", "--name=calico-node"]
    command += ["--rm"] if flags["init-system"] else ["-d", "--restart=always"]
    for variable, value in inside.env.items():
        command += ["-e", f"{variable}={value}"]
    for outer, inner in inside.volumes:
        command += ["-v", f"{outer}:{inner}"]
    return [*command, flags["node-image"]]


def _container(flags: Mapping[str, Any], name: str, datastore: DatastoreConfig) -> _Container:
    env = {
        "NODENAME": name,
        "CALICO_NETWORKING_BACKEND": flags["backend"],
        "CALICO_MANAGE_CNI": "false",  # that is for Kubernetes only
    }
    optional = {
        "NO_DEFAULT_POOLS": "true" if flags["no-default-ippools"] else "",
        "IP_AUTODETECTION_METHOD": _unless_default(flags["ip-autodetection-method"]),
        "IP6_AUTODETECTION_METHOD": _unless_default(flags["ip6-autodetection-method"]),
        "AS": str(_as_number(flags["as"])) if flags["as"] else "",
        "IP": flags["ip"],
        "IP6": flags["ip6"],
    }
    env |= {variable: value for variable, value in optional.items() if value}
    env["ETCD_ENDPOINTS"] = ",".join(datastore.etcdEndpoints)
    env["ETCD_DISCOVERY_SRV"] = datastore.etcdDiscoverySrv
    same = ("/var/run/calico", "/var/lib/calico", "/lib/modules", "/run")
    volumes = [(flags["log-dir"], "/var/log/calico"), *((path, path) for path in same)]
    if flags["felix-config"]:
        volumes.append((flags["felix-config"], "/etc/calico/felix.cfg"))
    certificates = [("ETCD_CA_CERT_FILE", datastore.etcdCACertFile, "ca_cert.crt")]
    if datastore.etcdKeyFile and datastore.etcdCertFile:
        certificates.append(("ETCD_KEY_FILE", datastore.etcdKeyFile, "key.pem"))
        certificates.append(("ETCD_CERT_FILE", datastore.etcdCertFile, "cert.crt"))
    for variable, path, file in certificates:
        if path:
            env[variable] = f"{_CERTIFICATES}/{file}"
            volumes.append((path, f"{_CERTIFICATES}/{file}"))
    return _Container(env, volumes)


def _unless_default(method: str) -> str:
    return "" if method == "first-found" else method


def _dry_run(command: list[str], *, init_system: bool) -> str:
    shown = printable(" ".join(command))
    text = f"Use the following command to start the calico/node container:\n\n{shown}\n\n"
    if init_system:
        return text + (
            "Use the following command to stop the calico/node container:\n\ndocker stop calico-node\n\n"
        )
    return text + (
        "If you are running calico/node in an init system, use the --init-system flag\n"
        "to display the appropriate start and stop commands.\n"
    )


# --- doing it -------------------------------------------------------------------------------------


def _prepare_host(call: Call) -> None:
    """Modules, forwarding and room for connections, which a container may not be able to see to."""
    call.out(f"Running command to load modules: {' '.join(_MODULES)}\n")
    asyncio.run(gather.output_of(_MODULES))  # built in, they cannot be loaded: that is as good
    for version, setting in ((4, "net/ipv4/ip_forward"), (6, "net/ipv6/conf/all/forwarding")):
        call.out(f"Enabling IPv{version} forwarding\n")
        try:
            _write_setting(setting, "1")
        except FileNotFoundError:
            continue  # a kernel without IPv6
        except OSError as err:
            raise CommandError(f"ERROR: Could not enable ipv{version} forwarding") from err
    call.out("Increasing conntrack limit\n")
    try:
        _write_setting("net/netfilter/nf_conntrack_max", "1000000")  # Calico's: many connections per host
    except OSError:
        call.out("WARNING: Could not set nf_conntrack_max. This may have an impact at scale.\n")


def _write_setting(name: str, value: str) -> None:
    with open(f"/proc/sys/{name}", "w", encoding="ascii") as out:
        out.write(value)


async def _start(call: Call, command: list[str]) -> None:
    call.out("Removing old calico-node container (if running).\n")
    await gather.output_of(("docker", "rm", "-f", "calico-node"))
    shown = printable(" ".join(command))
    call.out(f"Running the following command to start calico-node:\n\n{shown}\n\n")
    call.out("Image may take a short time to download if it is not available locally.\n")
    output, failed = await gather.output_of(tuple(command), _DOWNLOAD)
    if failed:
        lines = "".join(f" | {line}\n" for line in output.decode("utf-8", "replace").split("\n"))
        raise CommandError(f"Error executing command: docker run failed\n{lines}")
    call.out("Container started, checking progress logs.\n\n")
    if not await _follow(call):
        raise CommandError("error executing command: calico/node has terminated, check logs for details")


async def _follow(call: Call) -> bool:
    """Print the container's log until it says that it has started; False if it does not in time."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("docker", "logs", "--follow", "calico-node", stdout=pipe)
    lines = process.stdout
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FOLLOW):
                while lines is not None and (line := await lines.readline()):
                    text = line.decode("utf-8", "replace").rstrip("\n")
                    call.out(printable(text, keep="\t") + "\n")
                    if text == _STARTED:
                        return True
        return False
    finally:
        await children.end(process)
