"""`node diags`: routes, rules, sets and logs of this host in one archive. (Reference: CLI, 3.2.)"""

import asyncio
import os
import shutil
import tempfile
import time

from tortie.calicoctl import gather, rootonly
from tortie.calicoctl.call import Call
from tortie.calicoctl.gather import Collected, Tell
from tortie.calicoctl.nodestatus import felix_processes

_RUNTIMES = ("docker", "nerdctl", "crictl")  # the first that is there is asked for containers

COMMANDS = (
    Collected(("date",), "date"),
    Collected(("hostname",), "hostname"),
    Collected(("ip", "-4", "route"), "ipv4_route", "Dumping routes (IPv4)"),
    Collected(("ip", "-6", "route"), "ipv6_route", "Dumping routes (IPv6)"),
    Collected(("ip", "-4", "addr"), "ipv4_addr", "Dumping interface info (IPv4)"),
    Collected(("ip", "-6", "addr"), "ipv6_addr", "Dumping interface info (IPv6)"),
    Collected(("nft", "-n", "-a", "list", "ruleset"), "nft_ruleset", "Dumping nftables"),
    Collected(("iptables-save", "-c"), "ipv4_tables", "Dumping iptables (IPv4)"),
    Collected(("ip6tables-save", "-c"), "ipv6_tables", "Dumping iptables (IPv6)"),
    Collected(("ipset", "list"), "ipsets", "Dumping ipsets"),
    Collected(
        ("journalctl", "-u", "calico-node.service", "--no-pager"),
        "journalctl_calico_node",
        "Copying journal for calico-node.service",
    ),
)
_NETSTAT = Collected(("netstat", "-a", "-n"), "netstat", "Dumping netstat")
_SS = Collected(("ss", "-a", "-n"), "ss", "Dumping ss")


def diags(call: Call) -> None:
    rootonly.require()
    call.out("Collecting diagnostics\n")
    directory = tempfile.mkdtemp(prefix="calico")
    call.out(f"Using temp dir: {directory}\n")
    bundle = os.path.join(directory, "diagnostics")
    os.makedirs(bundle, mode=0o700)
    asyncio.run(_collect(bundle, call.flags["log-dir"], lambda text: call.out(f"{text}\n")))
    archive = os.path.join(directory, f"diags-{time.strftime('%Y%m%d_%H%M%S')}.tar.gz")
    gather.pack(directory, "diagnostics", archive)
    call.out(f"\nDiags saved to {archive}\n")


async def _collect(bundle: str, logs: str, tell: Tell) -> None:
    commands = [*COMMANDS, _NETSTAT if gather.found("netstat") else _SS]
    runtime = next(filter(gather.found, _RUNTIMES), "")
    await gather.collect(commands, bundle, tell)
    tell("Dumping felix stats")
    for pid in felix_processes():
        await gather.collect([Collected(("kill", "-USR1", str(pid)))], bundle, tell)
    _copy_logs(logs, os.path.join(bundle, "logs"), tell)
    if runtime:
        await _containers(runtime, bundle, tell)
    else:
        tried = ", ".join(_RUNTIMES)
        tell(f"Could not collect container logs: no container runtime found (tried {tried})")


def _copy_logs(source: str, target: str, tell: Tell) -> None:
    if not os.path.isdir(source):
        tell(f"No logs found in {source}; skipping log copying")
        return
    tell("Copying Calico logs")
    try:
        # As links, not as what they lead to: a log directory must not pull in the rest of the host.
        shutil.copytree(source, target, symlinks=True, ignore=_special_files)
    except OSError as err:  # shutil.Error too: what could be copied is there
        tell(f"Error copying log files: {err}")


def _special_files(directory: str, names: list[str]) -> set[str]:
    """Sockets and pipes, which have no content to copy and may block who reads them."""
    paths = {name: os.path.join(directory, name) for name in names}
    return {
        name
        for name, path in paths.items()
        if not (os.path.islink(path) or os.path.isfile(path) or os.path.isdir(path))
    }


async def _containers(runtime: str, bundle: str, tell: Tell) -> None:
    listing, names = await _calico_containers(runtime)
    if not names:
        return
    tell(f"Copying logs from Calico containers ({runtime})")
    os.makedirs(os.path.join(bundle, "logs"), exist_ok=True)
    with open(os.path.join(bundle, "logs", "container_creation_time"), "wb") as out:
        out.write(listing)
    logs = [Collected((runtime, "logs", name), f"logs/{name}.log") for name in names]
    sets = [Collected((runtime, "exec", names[0], "ipset", "list"), "ipset_container")]
    await gather.collect([*logs, *(sets if not gather.found("ipset") else [])], bundle, tell)


async def _calico_containers(runtime: str) -> tuple[bytes, list[str]]:
    if runtime == "crictl":
        output, failed = await gather.output_of(("crictl", "ps", "-a", "--name", "calico", "-q"))
        return output, [] if failed else container_names(output.decode("utf-8", "replace"))
    form = ("--filter", "name=calico", "--format", "{{.Names}}: {{.CreatedAt}}")
    output, failed = await gather.output_of((runtime, "ps", "-a", *form))
    return output, [] if failed else container_names(output.decode("utf-8", "replace"))


def container_names(listing: str) -> list[str]:
    """The first word of each line; names become files, so nothing but names. Pure."""
    words = [line.split(":")[0].strip() for line in listing.splitlines() if "k8s_POD" not in line]
    return [word for word in words if word and "/" not in word and not word.startswith((".", "-"))]
