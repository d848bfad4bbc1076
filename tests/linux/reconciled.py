"""What one namespace's kernel is told and has, by a reconciler that no back-off holds up."""

import asyncio
from typing import Any

from tests.netns_lab import Namespace
from tortie.core.reconcile import Outcome, Reconciler, Target


class Reconciled:
    def __init__(self, ns: Namespace, name: str, target: Target[Any, Any]) -> None:
        self.ns, self.now = ns, 0.0
        self.reconciler: Reconciler[Any, Any] = Reconciler(
            name, target, clock=lambda: self.now, rand=lambda: 0.5
        )

    def sync(self) -> Outcome:
        self.now += 100
        return self.ns.call(asyncio.run, self.reconciler.sync())

    def resync(self) -> Outcome:
        self.reconciler.forget()
        return self.sync()
