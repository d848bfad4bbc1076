"""From one request to its answer: what is asked, what it is asked with, and who carries it out.

Everything that can be wrong with a request leaves here as a CNI error object. The commands themselves
are plugin (ADD, DEL), check, collect (GC, STATUS) and, for the `calico-ipam` binary, ipam.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from tortie import __version__
from tortie.cni import check, collect, ipam, netconf, plugin, protocol, result, vmaddresses
from tortie.cni.addressing import AddressManager, CalicoIpam
from tortie.cni.conversation import Conversation
from tortie.cni.delegate import Delegated
from tortie.cni.identity import identify
from tortie.cni.journal import JournalHandler, Limits
from tortie.cni.later import Later
from tortie.cni.locks import Locks
from tortie.cni.netconf import NetConf
from tortie.cni.node import node_name
from tortie.cni.operation import Operation
from tortie.cni.pods import PodSource
from tortie.cni.protocol import CALICO, CALICO_IPAM, Call, Code
from tortie.cni.result import Result
from tortie.cni.store import Store, Stores
from tortie.cni.warm import WarmPool
from tortie.cni.wire import Request
from tortie.core.errors import CniError, PeerError, TortieError, Unauthorized
from tortie.core.paths import Paths
from tortie.ipam.allocator import Allocator
from tortie.linux import netns

_log = logging.getLogger(__name__)

_TEST_LIMIT = 2.0  # seconds for `calico -t`, Calico's


@dataclass(frozen=True, slots=True)
class Tools:
    """What lives as long as the server.

    `host` is an open descriptor of the host's network namespace, which is the server's; `node` is this
    node's name where a call does not say another; `prefix` is that of host-side interfaces.
    """

    host: int
    paths: Paths
    node: str
    stores: Stores
    pods: PodSource
    journal: JournalHandler
    prefix: str
    stopping: asyncio.Event
    warm: WarmPool  # this node's ready addresses in the datastore of the environment
    later: Later  # what ADDs that have answered still owe it


class Handler:
    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._locks = Locks()
        self._delegated = Delegated()
        # store -> node, and whether with the warm pool -> its addresses; a store that is given up takes its
        # own along
        self._pooled: WeakKeyDictionary[Store, dict[tuple[str, bool], CalicoIpam]] = WeakKeyDictionary()

    async def handle(self, request: Request, shim: Conversation) -> None:
        """Carry out one request and answer it. Raises PeerError if the shim went away meanwhile."""
        try:
            if request.arguments:
                await shim.finish(await self._flags(request), 0)
            elif not request.environment.get("CNI_COMMAND"):
                shim.complain(about(request.name))
                await shim.finish(b"", 0)
            else:
                await self._call(request, shim)
        except PeerError:
            raise
        except TortieError as err:
            version = netconf.version_of(request.stdin)
            await shim.finish(protocol.error_object(err, version), 1)

    # --- command line flags ---------------------------------------------------------------------

    async def _flags(self, request: Request) -> bytes:
        flag = request.arguments[0].removeprefix("-").removeprefix("-")
        if flag == "v":
            return f"{__version__}\n".encode()
        if flag == "t" and request.name != CALICO_IPAM:
            await self._test_connection(request.stdin)
            return b""
        if flag == "upgrade" and request.name == CALICO_IPAM:
            reason = "migration from host-local is done by draining the node"
            raise CniError(Code.CLI, "-upgrade is not supported", reason)
        undefined = f"flag provided but not defined: {request.arguments[0][:60]}"
        raise CniError(Code.CLI, "failed to parse CLI flags", undefined)

    async def _test_connection(self, stdin: bytes) -> None:
        try:
            async with asyncio.timeout(_TEST_LIMIT):
                await self._tools.stores.of(netconf.decode(stdin)).ensure_ready(fresh=True)
        except TimeoutError as err:
            reason = f"no answer within {_TEST_LIMIT:.0f} s"
            raise CniError(Code.CLI, "data store connection failed", reason) from err
        except TortieError as err:
            raise CniError(Code.CLI, "data store connection failed", str(err)) from err

    # --- CNI commands ---------------------------------------------------------------------------

    async def _call(self, request: Request, shim: Conversation) -> None:
        call = protocol.parse_call(request.name, request.environment)
        conf = netconf.load(call.command, request.stdin)
        limits = Limits.configured(conf.log_file_max_size, conf.log_file_max_age, conf.log_file_max_count)
        with self._tools.journal.during(conf.log_level, conf.log_file_path, limits, shim.complain):
            try:
                for field in netconf.for_windows(request.stdin):
                    _log.info("%s is for Windows nodes and has no effect here", field)
                op = self._operation(request, call, conf, shim)
                await self._serialised(op)
            except TortieError as err:
                _log.error("Final result of CNI %s was an error: %s", call.command, err)
                raise

    def _operation(self, request: Request, call: Call, conf: NetConf, shim: Conversation) -> Operation:
        tools = self._tools
        node = node_name(conf, tools.paths, tools.node)
        store = tools.stores.of(conf)
        op = Operation(
            call=call,
            conf=conf,
            stdin=request.stdin,
            shim=shim,
            store=store,
            home=tools.stores.is_home(store) and node == tools.warm.node,
            pods=tools.pods,
            paths=tools.paths,
            identity=identify(call, conf, node, tools.prefix),
            stopping=tools.stopping,
            later=tools.later,
        )
        if call.netns and call.command in ("ADD", "DEL", "CHECK"):
            _take_namespace(op, request.netns_errno, tools.host)
        return op

    async def _serialised(self, op: Operation) -> None:
        keys: tuple[object, ...] = ()
        if op.call.container_id:
            keys = (("container", op.call.container_id), ("workload", *op.identity.workload))
        async with self._locks.hold(*keys):
            op.checkpoint()
            await self._run(op)

    async def _run(self, op: Operation) -> None:
        manager = await self._manager(op)

        async def finish(found: Result) -> None:
            # An IPAM plugin is given the whole configuration of its caller, whose the previous result is.
            before = op.conf.previous if op.call.plugin == CALICO else {}
            output = result.encode(found, op.version, before)
            _log.info("attached %s to network %s", op.identity, op.conf.name)
            await op.shim.finish(output, 0)

        if op.call.command == "ADD":
            adding = ipam.add if op.call.plugin == CALICO_IPAM else plugin.add
            await adding(op, manager, finish)
            return
        await self._without_result(op, manager)
        if op.call.command == "DEL":
            op.later.forget(op.identity)
            _log.info("detached %s from network %s", op.identity, op.conf.name)
        await op.shim.finish(b"", 0)

    def _without_result(self, op: Operation, manager: AddressManager) -> Awaitable[None]:
        alone = op.call.plugin == CALICO_IPAM
        match op.call.command:
            case "DEL":
                return manager.release(op) if alone else plugin.delete(op, manager)
            case "CHECK":
                return ipam.check(op, manager) if alone else check.check(op, manager)
            case "GC":
                collecting = ipam.collect if alone else collect.collect
                return collecting(op, manager, lambda one: self._locks.busy(("container", one)))
            case _:
                return collect.status(op, manager)

    async def _manager(self, op: Operation) -> AddressManager:
        if op.conf.delegates_ipam and op.call.plugin != CALICO_IPAM:
            return self._delegated
        ours = self._calico_ipam(op)
        try:
            launched = await op.pods.launched(op.conf, op.identity)
        except Unauthorized as err:  # by a role of before VMs were looked at
            if op.call.command != "DEL":
                raise
            _log.warning("the VM's address of %s is left to the controllers: %s", op.identity, err)
            return ours
        return ours if launched is None else await vmaddresses.of(op, ours, launched)

    def _calico_ipam(self, op: Operation) -> CalicoIpam:
        warm, node = self._tools.warm, op.identity.node
        of_store, shared = self._pooled.setdefault(op.store, {}), op.home and warm.on
        if (node, shared) not in of_store:
            # Whoever writes to the same blocks takes turns with the warm pool.
            allocator = warm.allocator if shared else Allocator(op.store.client, node, view=op.store.view)
            of_store[node, shared] = CalicoIpam(allocator, warm)
        return of_store[node, shared]


def _take_namespace(op: Operation, netns_errno: int, host: int) -> None:
    """Look at the descriptor that came with the request. Raises CniError if it is the host's own.

    A path where nothing is, or something that is no namespace (any more), leaves none.
    """
    if (given := op.shim.namespace) is None:
        op.why_no_namespace = os.strerror(netns_errno).lower() if netns_errno else "it was not passed on"
    elif not netns.is_namespace(given):
        op.why_no_namespace = "not a network namespace"
    elif netns.same(given, host) and not op.call.may_share_netns:
        raise CniError(Code.INVALID_NETNS, "plugin's netns and netns from CNI_NETNS should not be the same")
    else:
        op.namespace = given


def about(name: str) -> str:
    """What the binary says of itself when it is run by hand."""
    title = "Calico CNI IPAM" if name == CALICO_IPAM else "Calico CNI plugin"
    return f"{title} {__version__}\nCNI protocol versions supported: {', '.join(protocol.VERSIONS)}\n"
