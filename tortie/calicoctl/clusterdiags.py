"""`cluster diags`: resources, logs and the nodes' networking in one archive, collected with kubectl.

(Reference: CLI, 3.5.) What is collected is data (clusterplan.py); this is who asks and who runs.
"""

import asyncio
import json
import os
import re
import shutil
import tempfile
import time
from typing import Any

from tortie.calicoctl import clusterplan, gather
from tortie.calicoctl.call import Call
from tortie.calicoctl.errors import CommandError, Refusal, printable
from tortie.calicoctl.gather import Tell

_SINCE = re.compile(r"[0-9]+[smh]", re.ASCII)


def diags(call: Call) -> None:
    wanted = options(call.flags)
    if not gather.found("kubectl"):
        raise CommandError("missing dependency: unable to locate kubectl in PATH")
    call.out("==== Begin collecting diagnostics. ====\n")
    temporary = tempfile.mkdtemp()
    call.out(f"Created temporary directory: {temporary}\n")
    name = "calico-diagnostics-" + time.strftime("%Y%m%d_%H%M%S", time.gmtime())
    bundle = os.path.join(temporary, name)
    os.makedirs(bundle, mode=0o700)
    try:
        asyncio.run(_collect(bundle, wanted, lambda text: call.out(f"{text}\n")))
        call.out("\n==== Producing a diagnostics bundle. ====\n")
        gather.pack(temporary, name, f"{name}.tar.gz")
        call.out(f"Diagnostic bundle created at ./{name}.tar.gz\n")
    finally:
        if not call.flags["skip-temp-dir-cleanup"]:
            shutil.rmtree(temporary)


def options(flags: Any) -> clusterplan.Wanted:
    """Raises Refusal for an option that cannot be. Pure."""
    since = flags["since"] or "0s"  # kubectl understands that as everything
    if not _SINCE.fullmatch(since):
        raise Refusal(
            f"Error executing command: invalid duration for since flag (try 10s, 5m, or 1h): {since}"
        )
    if flags["max-logs"] < 0:
        raise Refusal("Error executing command: negative value for max-logs flag")
    focus = tuple(filter(None, flags["focus-nodes"].split(",")))
    return clusterplan.Wanted(since, flags["max-logs"], max(1, flags["max-parallelism"]), focus)


async def _collect(bundle: str, wanted: clusterplan.Wanted, tell: Tell) -> None:
    at_once = wanted.at_once
    tell("Collecting (censored) TLS secrets")
    await _secrets(bundle, tell)
    nodes = clusterplan.node_order(wanted.focus, await _items(tell, "nodes"))
    for namespace in clusterplan.calico_namespaces(await _items(tell, "namespaces")):
        tell(f"Collecting detailed diags for namespace {namespace}...")
        workloads = await _items(tell, "daemonsets,deployments,statefulsets", "-n", namespace)
        pods = await _items(tell, "pods", "-n", namespace)
        chosen = clusterplan.chosen_pods(workloads, pods, nodes, wanted.logs)
        for pod in chosen:
            await gather.collect(clusterplan.pod_commands(pod, wanted.since), bundle, tell, at_once)
        for pod in filter(clusterplan.is_node_pod, chosen):
            files = await _cni_logs(pod)
            await gather.collect(clusterplan.node_commands(pod, files), bundle, tell, at_once)
    tell("Collecting core kubernetes resources...")
    custom = await _items(tell, "customresourcedefinitions")
    await gather.collect(clusterplan.cluster_commands(custom), bundle, tell, at_once)


async def _items(tell: Tell, what: str, *more: str) -> list[dict[str, Any]]:
    """A list of Kubernetes objects; what cannot be listed is told and is empty."""
    output, failed = await gather.output_of(("kubectl", "get", what, *more, "-o", "json"))
    try:
        if failed:
            raise ValueError(output.decode("utf-8", "replace").strip())
        items: list[dict[str, Any]] = json.loads(output)["items"]
    except (ValueError, KeyError, TypeError) as err:
        tell(f"ERROR listing {what}: {printable(str(err))}")
        return []
    return items


async def _secrets(bundle: str, tell: Tell) -> None:
    directory = os.path.join(bundle, "tls")
    os.makedirs(directory, exist_ok=True)
    for namespace, name in clusterplan.TLS_SECRETS:
        output, failed = await gather.output_of(
            ("kubectl", "get", "secret", name, "-n", namespace, "-o", "json")
        )
        try:
            censored = None if failed else clusterplan.censored(json.loads(output))
        except (ValueError, TypeError):
            censored = None
        if censored is None:
            tell(f"unable to get secret {namespace}/{name}, skipping...")
            continue
        with open(os.path.join(directory, f"{namespace}_{name}.yaml"), "w", encoding="utf-8") as out:
            json.dump(censored, out, indent=2)  # JSON is YAML


async def _cni_logs(pod: dict[str, Any]) -> list[str]:
    """The names of a node's CNI logs, [] if they cannot be listed."""
    output, failed = await gather.output_of((*clusterplan.inside(pod), "ls", clusterplan.CNI_LOGS))
    names = output.decode("utf-8", "replace").split()
    return [] if failed else [name for name in names if re.fullmatch(r"[\w.-]+", name)]
