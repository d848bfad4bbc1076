"""Random lives of a cluster against a model of its addresses; see ipam_model.py.

MODEL_STEPS is how many steps there are in all, 10,000 if it is not set. They run in memory, on the store
whose answers tests/datastore proves to be etcd's; some more run on a real etcd.
"""

import asyncio
import os
from collections.abc import Callable
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.ipam.ipam_grounds import OnEtcd
from tests.ipam.ipam_model import CLIENTS, NAMES, Model
from tests.ipam.ipam_world import World, on
from tests.support.etcd import Etcd
from tortie.datastore.backend import Backend

STEPS = int(os.environ.get("MODEL_STEPS", "10000"))
ON_ETCD = 200  # as many as take some seconds there
_LENGTH = 50  # steps of one life: long enough to fill all blocks, split the pool and join it again

FATES = ["overtaken", "lost", "unanswered", "dies before", "dies after"]


class Cluster(RuleBasedStateMachine):
    steps: ClassVar[int] = 0  # of all lives together

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = World()
        self.model = Model(self.world, self.connect())
        self.loop.run_until_complete(self.model.begin())

    def connect(self) -> Callable[[], Backend]:
        return lambda: self.world.backend

    @initialize(gentle=st.booleans())
    def be_born(self, gentle: bool) -> None:
        """In a gentle life there are conflicts, but no failures: afterwards everything is exact."""
        self.gentle = gentle

    @rule(name=st.sampled_from(NAMES), who=st.sampled_from(CLIENTS), seed=st.integers(0, 2**16))
    def calm(self, name: str, who: str, seed: int) -> None:
        self.take(name, who, seed)

    @rule(
        name=st.sampled_from(NAMES),
        who=st.sampled_from(CLIENTS),
        seed=st.integers(0, 2**16),
        fate=st.sampled_from(FATES),
        after=st.integers(0, 4),
        overtaker=st.sampled_from(NAMES),
    )
    def troubled(self, name: str, who: str, seed: int, fate: str, after: int, overtaker: str) -> None:
        self.take(name, who, seed, "overtaken" if self.gentle else fate, after, overtaker)

    def take(self, name: str, who: str, seed: int, *trouble: object) -> None:
        type(self).steps += 1
        self.loop.run_until_complete(self.model.step(name, who, seed, *trouble))  # type: ignore[arg-type]

    @invariant()
    def all_is_as_promised(self) -> None:
        self.loop.run_until_complete(self.model.check())

    def teardown(self) -> None:
        try:
            self.loop.run_until_complete(self.model.end())
        finally:
            self.loop.close()


def live(machine: type[Cluster], steps: int) -> None:
    """Life after life until there have been so many steps."""
    machine.steps = 0
    while machine.steps < steps:
        lives = max(1, (steps - machine.steps) // _LENGTH)
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=lives,
                stateful_step_count=_LENGTH,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


# Half a minute on an idle machine; a failure is made small before it is told.
@pytest.mark.timeout(900)
@pytest.mark.unit
def test_lives_in_memory() -> None:
    live(Cluster, STEPS)


@pytest.mark.timeout(900)
@pytest.mark.kernel
def test_lives_on_etcd(etcd: Etcd) -> None:
    ground = OnEtcd(etcd)

    class OnServer(Cluster):
        def __init__(self) -> None:
            etcd.wipe()
            with on(ground):
                super().__init__()

        def connect(self) -> Callable[[], Backend]:
            return ground.backend

        def teardown(self) -> None:
            try:
                self.loop.run_until_complete(self.model.end())
            finally:
                self.loop.run_until_complete(ground.close())
                self.loop.close()

    live(OnServer, ON_ETCD)
