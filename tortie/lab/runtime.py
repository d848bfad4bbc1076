"""The half of a container runtime that talks CNI: runs a list of plugins as containerd's library does.

Chain is the protocol (CNI specification, section 3): plugins in order for ADD, CHECK, GC and STATUS, in
reverse for DEL, each with the result so far, and with the capabilities it asks for. Runtime is a chain
on one machine of the lab, with pods in Kubernetes' terms.
"""

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tortie.core.errors import CniError

if TYPE_CHECKING:
    from tortie.lab.box import Box

_PLUGINS = "/opt/cni/bin"
_CONFIGURATIONS = "/etc/cni/net.d"
_LIMIT = 120.0  # seconds for one plugin; the shim ends before

Execute = Callable[[str, Mapping[str, str], bytes], tuple[int, bytes]]  # (plugin, environment, stdin)


@dataclass(frozen=True, slots=True)
class Attachment:
    """One interface of one container. `args` become CNI_ARGS, `capabilities` runtimeConfig.

    `config_args` become the `args` of each plugin's configuration.
    """

    container_id: str
    netns: str
    ifname: str = "eth0"
    args: Mapping[str, str] = field(default_factory=dict)
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    config_args: Mapping[str, Any] = field(default_factory=dict)


def execute_here(plugin: str, environment: Mapping[str, str], stdin: bytes) -> tuple[int, bytes]:
    """Run a plugin of CNI_PATH as a child of this process; (exit status, standard output)."""
    folders = environment["CNI_PATH"].split(":")
    program = next((p for folder in folders if os.path.exists(p := os.path.join(folder, plugin))), plugin)
    done = subprocess.run(
        [program], env=environment, input=stdin, capture_output=True, check=False, timeout=_LIMIT
    )
    return done.returncode, done.stdout


class Chain:
    """A network: its configuration list, and what was answered for each attachment."""

    def __init__(
        self, conflist: Mapping[str, Any], path: Sequence[str], execute: Execute = execute_here
    ) -> None:
        """`path` are the folders with plugins, as they are where `execute` runs them."""
        self.conflist = conflist
        self._path = path
        self._execute = execute
        self._results: dict[tuple[str, str], dict[str, Any]] = {}  # (container, interface) -> result

    def add(self, attachment: Attachment) -> dict[str, Any]:
        """Attach, and return the result. Raises CniError; what had been done is deleted then."""
        result: dict[str, Any] = {}
        try:
            for plugin in self.conflist["plugins"]:
                result = json.loads(self._run("ADD", plugin, attachment, result))
        except CniError:
            self._results[_key(attachment)] = result
            with contextlib.suppress(CniError):  # the ADD's is the one to be told; DEL is tried again later
                self.delete(attachment)
            raise
        self._results[_key(attachment)] = result
        return result

    def delete(self, attachment: Attachment) -> None:
        """Detach; may be repeated. Raises CniError of the first plugin that fails."""
        result = self._results.get(_key(attachment), {})
        for plugin in reversed(self.conflist["plugins"]):
            self._run("DEL", plugin, attachment, result)
        self._results.pop(_key(attachment), None)

    def check(self, attachment: Attachment) -> None:
        """Raises CniError if the attachment is not as it was made."""
        for plugin in self.conflist["plugins"]:
            self._run("CHECK", plugin, attachment, self._results[_key(attachment)])

    def gc(self, valid: Iterable[Attachment]) -> None:
        """Remove everything but the valid attachments. Raises CniError."""
        known = [{"containerID": one.container_id, "ifname": one.ifname} for one in valid]
        for plugin in self.conflist["plugins"]:
            self._run("GC", {**plugin, "cni.dev/valid-attachments": known}, None, {})

    def status(self) -> None:
        """Raises CniError if the network cannot take attachments now."""
        for plugin in self.conflist["plugins"]:
            self._run("STATUS", plugin, None, {})

    def _run(
        self,
        command: str,
        plugin: Mapping[str, Any],
        attachment: Attachment | None,
        result: Mapping[str, Any],
    ) -> bytes:
        stdin = json.dumps(self._configuration(plugin, attachment, result)).encode()
        environment = {"CNI_COMMAND": command, "CNI_PATH": ":".join(self._path)}
        if attachment is not None:
            environment |= {
                "CNI_CONTAINERID": attachment.container_id,
                "CNI_NETNS": attachment.netns,
                "CNI_IFNAME": attachment.ifname,
                "CNI_ARGS": ";".join(f"{key}={value}" for key, value in attachment.args.items()),
            }
        status, output = self._execute(plugin["type"], _inherited() | environment, stdin)
        if status != 0:
            raise _failure(command, plugin["type"], status, output)
        return output

    def _configuration(
        self, plugin: Mapping[str, Any], attachment: Attachment | None, result: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What one plugin reads: its part of the list, and what only the runtime knows."""
        common = {"name": self.conflist["name"], "cniVersion": self.conflist["cniVersion"]}
        conf = {**plugin, **common}
        if attachment is not None:
            wanted = [name for name, on in plugin.get("capabilities", {}).items() if on]
            given = {k: attachment.capabilities[k] for k in wanted if k in attachment.capabilities}
            if given:
                conf["runtimeConfig"] = given
            if attachment.config_args:
                conf["args"] = {**plugin.get("args", {}), **attachment.config_args}
        if result:
            conf["prevResult"] = result
        return conf


def _key(attachment: Attachment) -> tuple[str, str]:
    return attachment.container_id, attachment.ifname


def _inherited() -> dict[str, str]:
    """What plugins get of our own environment: portmap and bandwidth run iptables and tc."""
    return {name: os.environ[name] for name in ("PATH", "TORTIE_CNI_SOCKET") if name in os.environ}


def _failure(command: str, plugin: str, status: int, output: bytes) -> CniError:
    try:
        said = json.loads(output)
        return CniError(said["code"], said["msg"], said.get("details", ""))
    except (ValueError, KeyError, TypeError):
        text = output.decode("utf-8", "replace")[:500]
        return CniError(999, f"{plugin} failed at {command} with status {status} and no error object", text)


class Runtime:
    """The runtime of one machine. Raises CniError when a plugin does."""

    def __init__(self, box: "Box", network: str, *, tells: bool = True) -> None:
        """It `tells` the plugins what a pod is, unless they can ask a Kubernetes API."""
        self._box = box
        self._network = network
        self._tells = tells
        self._chain: Chain | None = None
        self._attachments: dict[tuple[str, str], Attachment] = {}  # (container, interface) -> what was asked

    @property
    def chain(self) -> Chain:
        """The network's list as it is on the machine; read when it is first needed."""
        if self._chain is None:
            self._chain = Chain(self._read(), [_PLUGINS], self._execute)
        return self._chain

    def _read(self) -> dict[str, Any]:
        folder = self._box.path(_CONFIGURATIONS)
        for path in sorted(folder.glob("*.conflist")):
            conflist: dict[str, Any] = json.loads(path.read_text())
            if conflist.get("name") == self._network:
                return conflist
        raise FileNotFoundError(f"{self._box.name}: no network {self._network} in {_CONFIGURATIONS}")

    def _execute(self, plugin: str, environment: Mapping[str, str], stdin: bytes) -> tuple[int, bytes]:
        command = self._box.command([f"{_PLUGINS}/{plugin}"], environment)
        done = subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=_LIMIT)
        return done.returncode, done.stdout

    def add(
        self,
        container_id: str,
        netns: str,
        ifname: str,
        pod: str,
        namespace: str,
        args: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Attach a pod's sandbox; see attachment() for `args`."""
        wanted = attachment(container_id, netns, ifname, pod, namespace, args or {})
        if not self._tells:
            wanted = replace(wanted, config_args={})
        result = self.chain.add(wanted)
        self._attachments[container_id, ifname] = wanted
        return result

    def delete(self, container_id: str, netns: str, ifname: str, pod: str, namespace: str) -> None:
        """Detach it; a sandbox that was never attached is no error."""
        known = self._attachments.get((container_id, ifname))
        self.chain.delete(known or attachment(container_id, netns, ifname, pod, namespace, {}))
        self._attachments.pop((container_id, ifname), None)

    def check(self, container_id: str, ifname: str = "eth0") -> None:
        self.chain.check(self._attachments[container_id, ifname])

    def gc(self) -> None:
        """Let the plugins remove whatever this runtime does not know of."""
        self.chain.gc(self._attachments.values())

    def status(self) -> None:
        self.chain.status()


_CAPABILITIES = ("portMappings", "bandwidth", "ips", "mac")  # of the CNI conventions
_POD_FIELDS = ("labels", "annotations", "serviceAccountName", "generateName", "ports")


def attachment(
    container_id: str, netns: str, ifname: str, pod: str, namespace: str, args: Mapping[str, Any]
) -> Attachment:
    """A pod's attachment as kubelet's runtime asks for it.

    `args`: fields of the pod (labels, annotations, serviceAccountName, generateName, ports), `namespace`
    with its labels and annotations, and capabilities (portMappings, bandwidth).
    """
    about = {
        "pod": {name: args[name] for name in _POD_FIELDS if name in args},
        "namespace": args.get("namespace", {}),
    }
    return Attachment(
        container_id=container_id,
        netns=netns,
        ifname=ifname,
        args={
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": namespace,
            "K8S_POD_NAME": pod,
            "K8S_POD_INFRA_CONTAINER_ID": container_id,
        },
        capabilities={name: args[name] for name in _CAPABILITIES if name in args},
        config_args={"org.projectcalico": about},
    )
