"""What the agent's loop does with a router, without daemons: decide, carry out, report, until all is said."""

from tortie.bgp import events
from tortie.bgp.commands import Change
from tortie.bgp.outbox import next_changes
from tortie.bgp.route import Received
from tortie.bgp.router import Router
from tortie.linux.routes import Route


def settle(router: Router, routes: dict[str, Route], now: float) -> list[Change]:
    """Until nothing changes; all changes on the way. `routes` are the kernel's."""
    done: list[Change] = []
    while True:
        decision = router.decide()
        for prefix, route in decision.routes.items():
            if route is None:
                routes.pop(prefix, None)
            else:
                routes[prefix] = route
        router.announce(decision)
        outboxes = [session.outbox for session in router.sessions.values()]
        changes: list[Change] = []
        while (some := next_changes(outboxes, now, 1000)) is not None:
            changes += some
        for change in changes:
            said = None if change.announcement is None else Received(*change.announcement)
            router.handle(events.Update(change.peer, True, {change.prefix: said}), now, now)
        done += changes
        if not changes and not decision.routes:
            return done
