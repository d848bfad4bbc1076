"""One IP version's rules and sets: the duties to have them so, and what renders them."""

from collections.abc import Callable
from typing import Any

from tortie.felix.dataplane.backend import Backend
from tortie.felix.dataplane.duty import Duty
from tortie.felix.dataplane.nft import NftSetWriter, NftTableWriter
from tortie.felix.dataplane.options import Options
from tortie.felix.dataplane.sets import Sets, SetWriter
from tortie.felix.dataplane.tables import TableWriter
from tortie.linux.ipsets import IPSet

_WRITERS: dict[bool, tuple[type[TableWriter], type[SetWriter]]] = {  # with nftables -> what renders for it
    False: (TableWriter, SetWriter),
    True: (NftTableWriter, NftSetWriter),
}


class Family:
    def __init__(
        self,
        version: int,
        options: Options,
        backend: Backend,
        *,
        spare_set: Callable[[str, IPSet], float],
        clock: Callable[[], float],
        rand: Callable[[], float],
    ) -> None:
        """`spare_set(name, set)`: for how many more seconds to leave one alone that is not wanted."""
        interval = options.table_interval
        self.tables: Duty[Any, Any] = Duty(
            f"IPv{version} chains",
            backend.tables,
            interval=interval,
            # Others write into iptables' tables as well, and may overwrite what they read before we wrote.
            recheck=0.0 if backend.nftables else options.table_recheck,
            clock=clock,
            rand=rand,
        )
        self.sets: Sets = Duty(
            f"IPv{version} IP sets",
            backend.sets,
            interval=interval if backend.nftables else options.set_interval,
            clock=clock,
            rand=rand,
            spare=spare_set,
        )
        # What other dataplanes left; gone in this order once the rest stands.
        self.leftovers: list[Duty[Any, Any]] = [
            Duty(one.name, one.target, interval=interval, clock=clock, rand=rand) for one in backend.leftovers
        ]
        table_writer, set_writer = _WRITERS[backend.nftables]
        self.chains = table_writer(version, options.settings, options.features, self.tables)
        self.members = set_writer(
            version,
            options.settings,
            self.sets,
            node=options.node,
            maximum=options.set_maximum,
            external=options.external_nodes,
        )

    async def clear(self) -> None:
        """Take down what other dataplanes left, now that this one enforces; sets after the rules on them."""
        if not self.chains.stands():
            return
        for duty in self.leftovers:
            if not (await duty.sync()).ok:
                return
