"""What a container runtime says to a plugin: command, environment, CNI_ARGS, versions, errors. Pure.

Checks and wording are those of the CNI library that Calico is built on (containernetworking/cni,
pkg/skel and pkg/utils), because runtimes and runbooks match on them; numbers are those of the CNI
specification 1.1.0, section "Error". The network configuration itself is netconf's.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import msgspec

from tortie.core.errors import CniError, ConfigError, DatastoreUnreachable, TortieError

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
OLDEST_WITH = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}  # command -> configuration version
CALICO, CALICO_IPAM = "calico", "calico-ipam"  # the two names the binary is installed by


class Code(IntEnum):
    """Of error objects; 1-99 are the specification's."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_NETWORK_CONFIG = 7
    INVALID_NETNS = 8
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51
    CLI = 100  # Calico's: wrong flags, failed connection test
    INTERNAL = 999  # everything else; the library's number


@dataclass(frozen=True, slots=True)
class CniArgs:
    """CNI_ARGS; '' or None is what was not given."""

    ip: str = ""  # a bare address, canonical
    pod: str = ""
    namespace: str = ""
    uid: str = ""  # the pod's
    test_namespace: str = ""  # instead of "default" for containers without a pod


@dataclass(frozen=True, slots=True)
class Call:
    """One checked invocation. `path` are the folders with plugins, `environment` is all that was passed."""

    plugin: str  # CALICO | CALICO_IPAM
    command: str
    environment: Mapping[str, str]
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    path: tuple[str, ...] = ()
    args: CniArgs = CniArgs()

    @property
    def may_share_netns(self) -> bool:
        """Whether CNI_NETNS may be the plugin's own namespace."""
        return self.environment.get("CNI_NETNS_OVERRIDE", "").upper() in ("1", "TRUE")


# command -> variables it cannot do without
_REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"),
    "GC": ("CNI_PATH",),
    "STATUS": ("CNI_PATH",),
    "VERSION": (),
}

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")  # container IDs and network names
_MAX_IFNAME = 15  # bytes, the kernel's limit


def parse_call(plugin: str, environment: Mapping[str, str]) -> Call:
    """The call that these variables make. Raises CniError naming the variable."""
    command = environment.get("CNI_COMMAND", "")
    required = _REQUIRED.get(command, ())
    if missing := [name for name in ("CNI_COMMAND", *required) if not environment.get(name)]:
        raise _bad_environment(f"required env variables [{','.join(missing)}] missing")
    if command not in _REQUIRED:
        raise _bad_environment(f"unknown CNI_COMMAND: {command[:40]}")
    container_id, ifname = environment.get("CNI_CONTAINERID", ""), environment.get("CNI_IFNAME", "")
    if "CNI_CONTAINERID" in required and not _NAME.fullmatch(container_id):
        raise _bad_environment("invalid characters in containerID", f"CNI_CONTAINERID={container_id}")
    if "CNI_IFNAME" in required:
        check_ifname(ifname)
    return Call(
        plugin=plugin,
        command=command,
        environment=environment,
        container_id=container_id,
        netns=environment.get("CNI_NETNS", ""),
        ifname=ifname,
        path=tuple(filter(None, environment.get("CNI_PATH", "").split(":"))),
        args=parse_args(environment.get("CNI_ARGS", ""), ignore_unknown=plugin == CALICO),
    )


def check_ifname(name: str) -> None:
    """The kernel's rules for interface names. Raises CniError."""
    given = f"CNI_IFNAME={name}"  # the specification wants the variable named; the library's words do not
    if len(name.encode("utf-8", "surrogateescape")) > _MAX_IFNAME:
        limit = f"interface name should be less than {_MAX_IFNAME + 1} characters"
        raise _bad_environment("interface name is too long", f"{limit}: {given}")
    if name in (".", ".."):
        raise _bad_environment("interface name is . or ..", given)
    if any(c in "/:" or c.isspace() for c in name):
        raise _bad_environment("interface name contains / or : or whitespace characters", given)


def check_network_name(name: str) -> None:
    if not name:
        raise CniError(Code.INVALID_NETWORK_CONFIG, "missing network name")
    if not _NAME.fullmatch(name):
        raise CniError(Code.INVALID_NETWORK_CONFIG, "invalid characters found in network name", name)


# --- CNI_ARGS -----------------------------------------------------------------------------------

_ARGS = {  # key of CNI_ARGS -> field of CniArgs
    "IP": "ip",
    "K8S_POD_NAME": "pod",
    "K8S_POD_NAMESPACE": "namespace",
    "K8S_POD_UID": "uid",
    "CNI_TEST_NAMESPACE": "test_namespace",
}
_NOT_CALICOS = "K8S_POD_UID"  # of these keys
_ARGS_IGNORED = {"IgnoreUnknown", "K8S_POD_INFRA_CONTAINER_ID"}
_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


def parse_args(text: str, ignore_unknown: bool = False) -> CniArgs:
    """`K=V;K=V`; of a repeated key the last counts. Raises CniError naming the pair.

    `ignore_unknown`: as if IgnoreUnknown=1 came first, which calico (not calico-ipam) puts there.
    """
    given: dict[str, str] = {}
    unknown: list[str] = []
    for pair in text.split(";") if text else []:
        key, equals, value = pair.partition("=")
        if not equals or "=" in value:
            raise _bad_environment(f'ARGS: invalid pair "{pair[:200]}"', "CNI_ARGS")
        if key == "IgnoreUnknown":
            ignore_unknown = _boolean(pair, value)
        elif field := _ARGS.get(key):
            given[field] = _address(pair, value) if field == "ip" else value
        if key not in {*_ARGS, *_ARGS_IGNORED} or key == _NOT_CALICOS:
            unknown.append(pair[:200])
    if unknown and not ignore_unknown:
        raise _bad_environment(f"ARGS: unknown args {unknown}", "CNI_ARGS")
    return CniArgs(**given)


def _boolean(pair: str, value: str) -> bool:
    if value.lower() not in _BOOLEANS:
        raise _bad_environment(f'ARGS: error parsing value of pair "{pair[:200]}": not a boolean', "CNI_ARGS")
    return _BOOLEANS[value.lower()]


def _address(pair: str, value: str) -> str:
    try:
        if "%" in value:  # an IPv6 zone, which no workload address has
            raise ValueError
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise _bad_environment(
            f'ARGS: error parsing value of pair "{pair[:200]}": invalid IP address: {value[:60]}',
            "CNI_ARGS",
        ) from None


# --- versions -----------------------------------------------------------------------------------


def check_version(command: str, version: str) -> None:
    """Whether a configuration of this version may be used with the command. Raises CniError."""
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4}){0,2}", version, re.ASCII):
        raise CniError(Code.DECODING_FAILURE, f'failed to parse version "{version[:40]}"')
    if (oldest := OLDEST_WITH.get(command)) and _order(version) < _order(oldest):
        raise CniError(Code.INCOMPATIBLE_VERSION, f"config version does not allow {command}")
    if version not in VERSIONS:
        quoted = " ".join(f'"{known}"' for known in VERSIONS)
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            "incompatible CNI versions",
            f'config is "{version}", plugin supports [{quoted}]',
        )


def _order(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def at_least(version: str, than: str) -> bool:
    return _order(version) >= _order(than)


# --- errors -------------------------------------------------------------------------------------


def error_object(err: TortieError, version: str = "1.0.0") -> bytes:
    """The JSON that a plugin prints when it fails, indented like the library's."""
    if isinstance(err, CniError):
        code, msg, details = int(err.code), err.msg, err.details
    else:
        code, msg, details = int(_code_of(err)), str(err), ""
    found: dict[str, str | int] = {"cniVersion": _printable(version), "code": code, "msg": _printable(msg)}
    if details:
        found["details"] = _printable(details)
    return msgspec.json.format(msgspec.json.encode(found), indent=4) + b"\n"


def _code_of(err: TortieError) -> Code:
    if isinstance(err, DatastoreUnreachable):
        return Code.TRY_AGAIN_LATER
    return Code.INVALID_NETWORK_CONFIG if isinstance(err, ConfigError) else Code.INTERNAL


def _printable(text: str) -> str:
    """Valid UTF-8 whatever it was made of: environment variables may hold any bytes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _bad_environment(msg: str, details: str = "") -> CniError:
    return CniError(Code.INVALID_ENVIRONMENT, msg, details)
