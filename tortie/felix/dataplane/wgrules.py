"""The rule that leads packets to WireGuard's table, and the tables that such a rule led to before.

Another RouteTableRanges means another table. The rule to the old one goes after the new rule stands, and
what was ours in the old table goes before it: afterwards nothing would tell that the table was ours.
"""

from collections.abc import Callable, Collection, Mapping
from socket import AF_INET, AF_INET6

from tortie.core.errors import KernelError
from tortie.linux.iprules import Rule, RuleTarget
from tortie.linux.netlink import NetlinkSocket
from tortie.linux.route_target import RouteTarget
from tortie.linux.routes import Route

KERNELS_TABLES = frozenset((0, 253, 254, 255))  # unspecified, default, main, local


def is_ours(rule: Rule, wanted: Rule) -> bool:
    """Whoever sends all but marked packets to our table; or, with our mark, to what may have been it.

    Where both were changed at once, our priority and a mark of one bit, as felix takes them, tell it.
    """
    if not rule.invert or not 0 < rule.mark == rule.mask or rule.table in KERNELS_TABLES:
        return False
    if rule.table == wanted.table or rule.mark == wanted.mark:
        return True
    return rule.priority == wanted.priority and rule.mark.bit_count() == 1


class WireguardRules(RuleTarget):
    """RuleTarget for what is_ours(); `owns_route`: of routes in a table that is left."""

    def __init__(self, netlink: NetlinkSocket, wanted: Rule, owns_route: Callable[[Route], bool]) -> None:
        super().__init__(netlink, wanted.version, lambda rule: is_ours(rule, wanted))
        self._table, self._owns_route = wanted.table, owns_route
        self._families = (AF_INET if wanted.version == 4 else AF_INET6,)

    async def apply(self, update: Mapping[Rule, bool], delete_: Collection[Rule]) -> Mapping[Rule, str]:
        failed = dict(await super().apply(update, ()))
        kept: dict[Rule, str] = {}  # because of what is still in the table
        for rule in delete_:
            if rule.table != self._table and (reason := await self._clear(rule.table)):
                kept[rule] = reason
        return failed | kept | dict(await super().apply({}, [rule for rule in delete_ if rule not in kept]))

    async def _clear(self, table: int) -> str:
        """Why it could not be, '' if nothing of ours is left."""
        routes = RouteTarget(self._netlink, self._owns_route, families=self._families, table=table)
        try:
            failed = await routes.apply({}, (await routes.read()).keys())
        except KernelError as err:
            return str(err)
        return next(iter(failed.values()), "")
