"""Which iptables this host uses - nft or legacy - and the programs to use it with.

Both can be active at once in one kernel, and rules in the wrong one are invisible to the person who
debugs with the other. The choice follows Calico (felix/environment/feature_detect_linux.go): where
the kubelet has left its mark, else where more rules are. On a tie Calico takes legacy; we take what
the plain `iptables` command is, because that is what the host's administrator will type.
"""

import os
import shutil
from dataclasses import dataclass
from typing import Literal

from tortie.core.errors import KernelError
from tortie.linux.process import run

Backend = Literal["nft", "legacy"]

_CANARIES = (":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY ")  # chains that the kubelet makes


@dataclass(frozen=True, slots=True)
class Tools:
    """The commands for one IP version and backend. `counted`: generation() tells of each change."""

    save: tuple[str, ...]
    restore: tuple[str, ...]
    counted: bool = False


def tools(version: int, backend: Backend, lock_probe_ms: int = 50) -> Tools:
    """Raises KernelError if iptables is not installed.

    Legacy tables are guarded by a lock that everybody takes; we wait for it, asking every
    `lock_probe_ms`. The nft back-end has none: the kernel orders the transactions.
    """
    wait: tuple[str, ...] = ()
    if backend == "legacy":
        wait = ("--wait", "10", "--wait-interval", str(lock_probe_ms * 1000))
    return Tools(
        (_program(version, backend, "save"),),
        (_program(version, backend, "restore"), "--noflush", *wait),
        counted=backend == "nft",
    )


def _program(version: int, backend: Backend, tool: str) -> str:
    family = "iptables" if version == 4 else "ip6tables"
    for name in (f"{family}-{backend}-{tool}", f"{family}-{tool}"):
        if path := shutil.which(name):
            return path
    raise KernelError("find", f"{family}-{tool}", text="is not installed")


async def detect(version: int, wanted: str = "auto") -> Backend:
    """`wanted` is nft, legacy or auto, in any case."""
    if wanted.lower() in ("nft", "legacy"):
        return "nft" if wanted.lower() == "nft" else "legacy"
    nft = await _saved(version, "nft")
    legacy = await _saved(version, "legacy") if _legacy_in_use(version) else ""
    for backend, saved in (("nft", nft), ("legacy", legacy)):
        if any(canary in saved for canary in _CANARIES):
            return "nft" if backend == "nft" else "legacy"
    counts = nft.count("\n-A "), legacy.count("\n-A ")
    if counts[0] != counts[1]:
        return "nft" if counts[0] > counts[1] else "legacy"
    return await _default(version)


def other_in_use(version: int, backend: Backend) -> Backend | None:
    """The back-end that is not ours, if it exists here and may hold rules that we left there once."""
    if backend == "nft":
        return "legacy" if _legacy_in_use(version) else None
    return "nft" if shutil.which(f"{'iptables' if version == 4 else 'ip6tables'}-nft-save") else None


def _legacy_in_use(version: int) -> bool:
    """Asking legacy tools about unused tables would load them into the kernel."""
    path = f"/proc/net/{'ip' if version == 4 else 'ip6'}_tables_names"
    try:
        with open(path, encoding="ascii") as names:
            return bool(names.read().strip())
    except OSError:
        return False


async def _saved(version: int, backend: Backend) -> str:
    """All rules of a back-end; nothing if it is not installed or not supported."""
    name = f"{'iptables' if version == 4 else 'ip6tables'}-{backend}-save"
    if shutil.which(name) is None:
        return ""
    return (await run(name)).output


async def _default(version: int) -> Backend:
    plain = "iptables" if version == 4 else "ip6tables"
    if shutil.which(plain) is None:
        return "nft"
    said = (await run(plain, "--version")).output
    return "legacy" if "legacy" in said or "nf_tables" not in said else "nft"


def installed(version: int) -> bool:
    """Whether there is any iptables for this IP version, and the kernel has that version at all."""
    family = "iptables" if version == 4 else "ip6tables"
    return bool(shutil.which(f"{family}-save")) and (version == 4 or os.path.exists("/proc/net/if_inet6"))
