"""IPAM's garbage collection: gives back what nobody uses, in the order addresses, cooled ones, blocks, nodes.

What `leaks` and `emptyblocks` decide is decided on a picture that is a moment old. So before an address is
given back, its pod, or its node if that is gone, is asked for once more; and every release names the very
allocation that was judged: one that was made since is another.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from tortie.controllers import emptyblocks, metrics
from tortie.controllers.emptyblocks import Seen
from tortie.controllers.feed import Feed
from tortie.controllers.labels import kubernetes_name
from tortie.controllers.leaks import Home, Id, Picture, id_of, in_use, judge, pod_of, release_of
from tortie.controllers.machines import Machines, Name, any_idle, machines, pods_of
from tortie.controllers.metrics import Counts
from tortie.core import exposition
from tortie.core.errors import (
    DatastoreUnreachable,
    ResourceDoesNotExist,
    Unauthorized,
    UpdateConflict,
    ValidationError,
    printable,
)
from tortie.core.tasks import together
from tortie.datastore.backend import KV, Backend
from tortie.datastore.keys import AffinityList, BlockKey, ResourceKey
from tortie.datastore.nativekeys import (
    PodKey,
    PodList,
    VirtualMachineInstanceList,
    VirtualMachineList,
)
from tortie.datastore.types.ipam import DEFAULT_IPAM_CONFIG, Block
from tortie.datastore.types.pod import Pod
from tortie.ipam import block as blocks
from tortie.ipam import gotime
from tortie.ipam.allocator import Allocator
from tortie.ipam.audit import Allocation, allocation
from tortie.ipam.block import Owner
from tortie.ipam.errors import BlockNotEmpty
from tortie.ipam.names import TYPE
from tortie.ipam.view import Facts, facts_from

_log = logging.getLogger(__name__)

_BATCH = 10_000  # addresses given back in one round, Calico's number
_ONE_BY_ONE = 50  # pods that are asked for singly; of more, a list of all is cheaper
_AT_ONCE = 16  # pods asked for at the same time
_MACHINES_FOR = 60.0  # seconds that VMs are remembered: little of the five minutes that one's address has
TOPICS = ("BlockKey", "Node", "IPPool", "IPReservation", "ClusterInformation")


class Collector:
    """`ours` has the topics above, `native` Nodes and PodKeys; they may be the same feed."""

    def __init__(
        self,
        allocator: Allocator,
        backend: Backend,
        api: Backend,
        ours: Feed,
        native: Feed,
        grace: float,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """`api` reads Kubernetes' objects; `grace` in seconds, 0: only what gone nodes left is given back;
        `clock` gives Unix time in ns."""
        self._allocator = allocator
        self._backend = backend
        self._api = api
        self._ours = ours
        self._native = native
        self._grace = grace
        self._clock = clock
        self._suspects: dict[Id, float] = {}  # candidate -> since when
        self._empty: dict[Seen, float] = {}  # empty block -> since when
        self._read: dict[BlockKey, tuple[Block, list[Allocation]]] = {}  # what was made of a block
        self._reclaimed: Counter[tuple[str, str]] = Counter()  # (pool, node) -> addresses
        self._counts = Counts()
        self._machines: Machines | None = None  # as they were listed last
        self._machines_due = 0.0  # when that is too long ago (loop time)

    def metrics(self) -> str:
        return exposition.text(metrics.figures(self._counts, self._reclaimed))

    async def round(self) -> float | None:
        """One look; when the next is due (loop time). Raises TortieError."""
        if self._locked():
            _log.debug("the datastore is locked: no garbage is collected")
            return None
        now = asyncio.get_running_loop().time()
        self._read_blocks()
        pods = self._pods()
        picture = self._picture(pods, await self._machines_of(pods, now))
        verdict = judge(picture, self._suspects, now, self._grace)
        self._suspects = verdict.suspects
        self._count()
        kept = await self._give_back(verdict.leaked[:_BATCH])
        kept |= {one.node for one in verdict.leaked[_BATCH:]}
        await self._free_cooled()
        empty = emptyblocks.look((block for block, _ in self._read.values()), self._empty, now, self._grace)
        self._empty = empty.since
        await self._release_blocks(empty.release)
        for node in verdict.gone:
            if node not in kept:
                await self._release_node(node)
        dues = [due for due in (verdict.next_at, empty.next_at) if due is not None]
        return min(dues, default=None)

    # --- the picture ----------------------------------------------------------------------------

    def _locked(self) -> bool:
        found = self._ours.of("ClusterInformation").get(ResourceKey("ClusterInformation", "default"))
        return found is not None and found.spec.datastoreReady is False

    def _read_blocks(self) -> None:
        """Blocks that did not change are not looked into again."""
        fresh: dict[BlockKey, tuple[Block, list[Allocation]]] = {}
        for key, block in self._ours.of("BlockKey").items():
            known = self._read.get(key)
            fresh[key] = known if known and known[0] is block else (block, allocations_of(block))
        self._read = fresh

    def _pods(self) -> dict[Name, Pod]:
        return {(key.namespace, key.name): pod for key, pod in self._native.of("PodKey").items()}

    async def _machines_of(self, pods: Mapping[Name, Pod], now: float) -> Machines | None:
        """The VMs, if it matters which there are: many rounds come in a row, and a VM is in no hurry."""
        if not any_idle((one for _, found in self._read.values() for one in found), pods):
            return None
        if now >= self._machines_due:
            self._machines, self._machines_due = await self._machines_now(), now + _MACHINES_FOR
        return self._machines

    async def _machines_now(self) -> Machines | None:
        """None if they cannot be read, by a role of before they were looked at too: all else is collected."""
        try:
            stored, instances = await together(
                self._api.list(VirtualMachineList()), self._api.list(VirtualMachineInstanceList())
            )
        except (Unauthorized, DatastoreUnreachable) as err:
            _log.warning("addresses of KubeVirt's VMs are not judged: %s", err)
            return None
        return machines(stored, instances)

    def _picture(self, pods: Mapping[Name, Pod], known: Machines | None) -> Picture:
        owners = [Owner.parse(block.affinity) for block, _ in self._read.values()]
        return Picture(
            allocations=[one for _, found in self._read.values() for one in found],
            owners=[owner.host for owner in owners if owner is not None and owner.type == "host"],
            home=self._home,
            pods=pods,
            kubernetes_name=self._sure_name,
            machines=known,
        )

    def _kubernetes_name(self, node: str) -> str:
        found = self._ours.of("Node").get(ResourceKey("Node", node))
        return kubernetes_name(found) if found is not None else node

    def _sure_name(self, node: str) -> str:
        """Of a node that is known; a pod elsewhere says nothing about an address of one that is not."""
        found = self._ours.of("Node").get(ResourceKey("Node", node))
        return kubernetes_name(found) if found is not None else ""

    def _home(self, node: str) -> Home:
        """A node that has no object of ours yet, but is in Kubernetes, is about to get one."""
        name = self._kubernetes_name(node)
        if not name:
            return Home.FOREIGN
        return Home.HERE if ResourceKey("Node", name) in self._native.of("Node") else Home.GONE

    def _facts(self) -> Facts:
        """Pools and reservations; what is wrong with them, the allocator says."""
        of = self._ours.of
        pools, reservations = list(of("IPPool").values()), list(of("IPReservation").values())
        return facts_from(DEFAULT_IPAM_CONFIG, pools, reservations)[0]

    def _count(self) -> None:
        facts, nodes = self._facts(), [key.name for key in self._ours.of("Node")]
        self._counts = metrics.count(self._read.values(), facts.pools, nodes, self._suspects, facts.reserved)

    # --- giving back ----------------------------------------------------------------------------

    async def _give_back(self, leaked: Sequence[Allocation]) -> set[str]:
        """Release what is a leak on a second look, too; nodes of which something remained."""
        sure = await self._second_look(leaked)
        ids = {id_of(one) for one in sure}
        kept = {one.node for one in leaked if id_of(one) not in ids}
        if not sure:
            return kept
        outcome = await self._allocator.release_ips(release_of(one) for one in sure)
        done = {request.address for request in outcome.done}
        known = self._facts().pools
        for one in sure:
            if one.address in done:
                self._suspects.pop(id_of(one), None)
                block = self._read.get(BlockKey(one.block))
                pool = metrics.pool_name(block[0], known) if block else metrics.NO_POOL
                self._reclaimed[pool, one.node or metrics.NO_NODE] += 1
                _log.info("released %s, leaked by %s of node %s", one.address, _user(one), one.node)
        if outcome.error is not None:
            raise outcome.error
        return kept

    async def _second_look(self, leaked: Sequence[Allocation]) -> list[Allocation]:
        """Of a node that was believed to be gone and is not, nothing: its addresses have their grace."""
        nodes = {one.node for one in leaked}
        back = {node for node in nodes if self._home(node) is not await self._home_now(node)}
        pods = await self._pods_now([name for one in leaked for name in pods_of(one)])
        known = await self._machines_now() if any_idle(leaked, pods) else None
        fresh = self._picture(pods, known)
        sure = [
            one
            for one in leaked
            if one.node not in back and not in_use(one, self._home(one.node) is not Home.GONE, fresh)
        ]
        ids = {id_of(one) for one in sure}
        kept = {one.handle for one in leaked if id_of(one) not in ids}
        return [one for one in sure if not one.handle or one.handle not in kept]

    async def _home_now(self, node: str) -> Home:
        home = self._home(node)
        if home is Home.GONE and await self._exists(ResourceKey("Node", self._kubernetes_name(node))):
            return Home.HERE
        return home

    async def _exists(self, key: ResourceKey) -> bool:
        try:
            await self._api.get(key)
        except ResourceDoesNotExist:
            return False
        except ValidationError as err:
            _log.debug("%s is there, though not to be understood: %s", key, err)
        return True

    async def _pods_now(self, names: Sequence[Name]) -> dict[Name, Pod]:
        """Those that exist; one that cannot be understood as a pod of which nothing is known."""
        if len(set(names)) > _ONE_BY_ONE:
            listed = await self._api.list(PodList())
            strange = [broken.key for broken in listed.broken]
            found = {(pod.metadata.namespace, pod.metadata.name): pod for pod in _values(listed.items)}
            return found | {(key.namespace, key.name): Pod() for key in strange if isinstance(key, PodKey)}
        gate = asyncio.Semaphore(_AT_ONCE)
        found = {}

        async def ask(name: Name) -> None:
            async with gate:
                try:
                    found[name] = (await self._api.get(PodKey(*name))).value
                except ResourceDoesNotExist:
                    return
                except ValidationError as err:
                    _log.debug("pod %s/%s is there, though not to be understood: %s", *name, err)
                    found[name] = Pod()

        await together(*(ask(name) for name in set(names)))
        return found

    async def _free_cooled(self) -> None:
        """Blocks see their cooled addresses freed with the next write; this is for those that see none."""
        cooling = [
            key for key, (block, _) in self._read.items() if any(a.releasedAt for a in block.attributes)
        ]
        if not cooling:
            return
        cooldown = (await self._allocator.get_config()).ipCooldownSeconds
        now = self._clock()
        for key in cooling:
            times = [gotime.parse(a.releasedAt) for a in self._read[key][0].attributes if a.releasedAt]
            if min(times) + cooldown * 1_000_000_000 > now:
                continue
            try:
                await self._allocator.free_cooled(await self._backend.get(key))
            except (UpdateConflict, ResourceDoesNotExist) as err:
                _log.debug("%s changed meanwhile: %s", key, err)

    async def _release_blocks(self, found: Iterable[Block]) -> None:
        for block in found:
            try:
                await self._allocator.release_block_affinity(block, must_be_empty=True)
            except BlockNotEmpty:
                _log.debug("block %s is used again", block.cidr)
            else:
                _log.info("released block %s of %s, empty and not its only one", block.cidr, block.affinity)

    async def _release_node(self, node: str) -> None:
        if await self._home_now(node) is not Home.GONE:
            return
        try:
            await self._allocator.release_host_affinities(Owner(node), must_be_empty=True)
            if not (await self._backend.list(AffinityList(node))).items:  # else it is back
                await self._allocator.remove_host(Owner(node))  # blocks that only name it, from a crash
        except BlockNotEmpty as err:  # an address is cooling, or was given out just now
            _log.debug("blocks of node %s stay until the next round: %s", node, err)
        else:
            _log.info("released the blocks of node %s, which is gone", node)


def allocations_of(block: Block) -> list[Allocation]:
    """All that a block has given out, cooling ones included."""
    found = ((ordinal, blocks.attribute_at(block, ordinal)) for ordinal in range(len(block.allocations)))
    return [allocation(block, ordinal, one, ()) for ordinal, one in found if one is not None]


def _values(found: Iterable[KV]) -> Iterable[Pod]:
    return (kv.value for kv in found)


def _user(one: Allocation) -> str:
    namespace, pod = pod_of(one)
    return printable(f"pod {namespace}/{pod}" if pod else one.known(TYPE) or "nobody known", 400)
