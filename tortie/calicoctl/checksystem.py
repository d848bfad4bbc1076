"""`node checksystem`: whether this host's kernel has what a node needs.

(Reference: CLI, 3.3.) A module counts as there if it is loaded, built in, can be loaded, or is named by
the kernel's configuration; where one of these sources is missing, the others decide.
"""

import os
import platform
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from tortie.calicoctl import rootonly
from tortie.calicoctl.call import Call
from tortie.calicoctl.errors import CommandError, printable

_OLDEST = (2, 6, 24)  # the first kernel with network namespaces and veth pairs
_COMPRESSED = r"\.ko(?:\.(?:gz|xz|zst|bz2))?"


@dataclass(frozen=True, slots=True)
class Module:
    """`options` are the configuration's names for it; `others` modules that do the same."""

    name: str
    options: tuple[str, ...]
    others: tuple[str, ...] = ()
    optional: bool = False


MODULES = (
    Module("ip_set", ("CONFIG_IP_SET",)),
    Module("ip6_tables", ("CONFIG_IP6_NF_IPTABLES",), optional=True),
    Module("ip_tables", ("CONFIG_IP_NF_IPTABLES",)),
    Module("ipt_ipvs", ("CONFIG_NETFILTER_XT_MATCH_IPVS",), ("xt_ipvs",)),
    Module("vfio-pci", ("CONFIG_VFIO", "CONFIG_VFIO_PCI"), ("vfio_pci",)),
    Module("xt_bpf", ("CONFIG_BPF", "CONFIG_NETFILTER_XT_MATCH_BPF"), optional=True),
    Module(
        "ipt_REJECT",
        ("CONFIG_IP_NF_TARGET_REJECT", "CONFIG_NFT_REJECT", "CONFIG_NETFILTER_XT_TARGET_REJECT"),
        ("xt_REJECT",),
    ),
    Module(
        "xt_rpfilter",
        (
            "CONFIG_IP_NF_MATCH_RPFILTER",
            "CONFIG_IP6_NF_MATCH_RPFILTER",
            "CONFIG_NETFILTER_XT_MATCH_RPFILTER",
        ),
        ("ipt_rpfilter",),
    ),
    Module("nf_conntrack_netlink", ("CONFIG_NF_CT_NETLINK",)),
    Module("xt_addrtype", ("CONFIG_NETFILTER_XT_MATCH_ADDRTYPE",)),
    Module("xt_conntrack", ("CONFIG_NETFILTER_XT_MATCH_CONNTRACK",)),
    Module(
        "xt_mark",
        ("CONFIG_NETFILTER_XT_MARK", "CONFIG_IP_NF_TARGET_MARK", "CONFIG_NETFILTER_XT_TARGET_MARK"),
    ),
    Module("xt_multiport", ("CONFIG_NETFILTER_XT_MATCH_MULTIPORT", "CONFIG_IP_NF_MATCH_MULTIPORT")),
    Module("xt_set", ("CONFIG_NETFILTER_XT_SET",), ("ipt_set",)),
    Module("xt_u32", ("CONFIG_NETFILTER_XT_MATCH_U32",), optional=True),
)


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a kernel says of itself. Module names have `_` for `-`."""

    release: str
    modules: Collection[str]  # loaded, built in or loadable
    options: Collection[str]  # of its configuration, those that are y or m


def checksystem(call: Call) -> None:
    rootonly.require()
    kernel = _kernel(call.flags["kernel-config"])
    text, complete = report(kernel)
    call.out(text)
    if not complete:
        raise CommandError("system doesn't meet one or more minimum systems requirements to run Calico")


# --- the judgement, all pure ----------------------------------------------------------------------


def report(kernel: Kernel) -> tuple[str, bool]:
    """The output, and whether everything that is needed is there."""
    lines = ["Checking kernel version..."]
    recent = release_number(kernel.release) >= _OLDEST
    lines.append(_result(kernel.release, "OK" if recent else "FAIL"))
    if not recent:
        oldest = ".".join(map(str, _OLDEST))
        lines.append(
            f"Minimum kernel version to run Calico is {oldest}. Detected kernel version: {kernel.release}"
        )
    lines.append("Checking kernel modules...")
    lacking = [module for module in MODULES if not has(kernel, module)]
    for module in MODULES:
        lines += _module_lines(module, present=module not in lacking)
    complete = recent and all(module.optional for module in lacking)
    if complete:
        lines.append("System meets minimum system requirements to run Calico!")
    return "".join(f"{printable(line, keep=chr(9))}\n" for line in lines), complete


def _module_lines(module: Module, *, present: bool) -> list[str]:
    if present:
        return [_result(module.name, "OK")]
    if module.optional:
        warning = f"WARNING: Unable to detect optional module/feature {module.name}; continuing"
        return [warning, _result(module.name, "SKIP")]
    warning = f"WARNING: Unable to detect the {module.name} module as Loaded/Builtin module or lsmod"
    return [warning, _result(module.name, "FAIL")]


def _result(what: str, result: str) -> str:
    return f"\t\t{what:<20}\t\t\t\t\t{result}"


def has(kernel: Kernel, module: Module) -> bool:
    names = (name.replace("-", "_") for name in (module.name, *module.others))
    return any(name in kernel.modules for name in names) or any(
        option in kernel.options for option in module.options
    )


def release_number(release: str) -> tuple[int, ...]:
    """6.1.0-18-amd64 -> (6, 1, 0)"""
    found = re.match(r"\d+(?:\.\d+)*", release)
    return tuple(map(int, found[0].split("."))) if found else ()


def module_names(lines: Iterable[str]) -> set[str]:
    """The modules of modules.dep or modules.builtin: each line begins with one's file."""
    found = (re.match(rf"(?:[^:]*/)?([^/:]+?){_COMPRESSED}(?::|$)", line) for line in lines)
    return {match[1].replace("-", "_") for match in found if match}


def options_set(lines: Iterable[str]) -> set[str]:
    """The options of a kernel configuration that are built in or modules."""
    return {match[1] for line in lines if (match := re.match(r"(CONFIG_\w+)=[ym]", line))}


# --- looking --------------------------------------------------------------------------------------


def _kernel(configuration: str) -> Kernel:
    release = platform.release()
    modules = set(os.listdir("/sys/module"))
    modules |= {line.split(" ", 1)[0] for line in _lines("/proc/modules")}
    for name in ("modules.dep", "modules.builtin"):
        modules |= module_names(_lines(f"/lib/modules/{release}/{name}"))
    places = [configuration] if configuration else _places(release)
    path = next(filter(os.path.exists, places), "")
    if configuration and not path:
        raise CommandError(f"open {configuration}: no such file or directory")
    return Kernel(release, modules, options_set(_lines(path)) if path else ())


def _places(release: str) -> list[str]:
    return [
        "/usr/src/linux/.config",
        f"/boot/config-{release}",
        f"/usr/src/linux-{release}/.config",
        f"/usr/src/linux-headers-{release}/.config",
        f"/lib/modules/{release}/build/.config",
    ]


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as source:
            return source.read().splitlines()
    except OSError:
        return []  # one source of several: the others decide
