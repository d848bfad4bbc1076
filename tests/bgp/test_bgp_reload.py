"""Getting ExaBGP to run with a new file, against one that drops reloads."""

import asyncio
from collections.abc import Callable

import pytest

from tortie.bgp.reload import Reload

pytestmark = pytest.mark.unit


class ModelExaBGP:
    """Implements reload.Edge; drops the first `drops` reloads."""

    def __init__(self, drops: int = 0) -> None:
        self.file = ""
        self.runs = ""
        self.drops = drops
        self.did: list[str] = []

    async def digest(self) -> str | None:
        self.did.append("ask")
        return self.runs

    async def drain(self, seconds: float) -> None:
        self.did.append("drain")

    def order_reload(self) -> None:
        self.did.append("reload")
        if self.drops:
            self.drops -= 1
        else:
            self.runs = self.file

    async def restart(self) -> None:
        self.did.append("restart")
        self.runs = self.file


def _run(exabgp: ModelExaBGP, act: Callable[[Reload], None], slept: list[float]) -> int:
    """Let a Reload act until it is content; how often it said so."""

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def main() -> int:
        reload, loads = Reload(exabgp, sleep), 0
        content = asyncio.Event()

        def loaded() -> None:
            nonlocal loads
            loads += 1
            content.set()

        act(reload)
        runner = asyncio.create_task(reload.run(loaded))
        async with asyncio.timeout(30):
            await content.wait()
        assert reload.state == "loaded" and not reload.pausing
        runner.cancel()
        return loads

    return asyncio.run(main())


def _want(exabgp: ModelExaBGP, digest: str) -> Callable[[Reload], None]:
    def act(reload: Reload) -> None:
        exabgp.file = digest
        reload.want(digest)

    return act


def test_a_file_that_is_loaded_already_needs_nothing() -> None:
    exabgp = ModelExaBGP()
    exabgp.runs = "a"
    assert _run(exabgp, _want(exabgp, "a"), []) == 1
    assert exabgp.did == ["ask"]


def test_withdrawals_leave_before_the_reload() -> None:
    exabgp = ModelExaBGP()
    _run(exabgp, _want(exabgp, "a"), [])
    assert exabgp.did == ["ask", "drain", "reload", "ask"]


def test_a_dropped_reload_is_repeated() -> None:
    exabgp, slept = ModelExaBGP(drops=3), list[float]()
    _run(exabgp, _want(exabgp, "a"), slept)
    assert exabgp.did.count("reload") == 4 and "restart" not in exabgp.did
    waits = [seconds for seconds in slept if seconds != 0.2]
    assert waits == sorted(waits) and len(waits) == 3


def test_an_exabgp_that_is_deaf_is_restarted() -> None:
    exabgp = ModelExaBGP(drops=1000)
    _run(exabgp, _want(exabgp, "a"), [])
    assert exabgp.did.count("restart") == 1


def test_reloads_that_are_only_slow_are_no_failures() -> None:
    """Each takes effect between our last question and the next try; twenty are not one that never does."""
    exabgp, waits = ModelExaBGP(), []

    async def sleep(seconds: float) -> None:
        if seconds != 0.2:
            waits.append(seconds)
            exabgp.runs = exabgp.file

    async def main() -> None:
        reload, content = Reload(exabgp, sleep), asyncio.Event()
        exabgp.drops = 1000
        runner = asyncio.create_task(reload.run(content.set))
        for number in range(20):
            content.clear()
            _want(exabgp, str(number))(reload)
            async with asyncio.timeout(30):
                await content.wait()
        runner.cancel()

    asyncio.run(main())
    assert "restart" not in exabgp.did and set(waits) == {0.5}


def test_a_restart_that_fails_is_tried_again() -> None:
    """As when there is no memory to start ExaBGP's check: the supervisor calls run() once more."""

    class Poor(ModelExaBGP):
        async def restart(self) -> None:
            if "restart" not in self.did:
                self.did.append("restart")
                raise OSError("Cannot allocate memory")
            await super().restart()

    async def sleep(_seconds: float) -> None:
        pass

    async def main() -> None:
        reload, content = Reload(exabgp, sleep), asyncio.Event()
        _want(exabgp, "a")(reload)
        with pytest.raises(OSError, match="memory"):
            await reload.run(content.set)
        runner = asyncio.create_task(reload.run(content.set))
        async with asyncio.timeout(30):
            await content.wait()
        runner.cancel()

    exabgp = Poor(drops=1000)
    asyncio.run(main())
    assert exabgp.runs == "a"


def test_a_configuration_without_sessions() -> None:
    exabgp = ModelExaBGP()
    exabgp.runs = "a"
    _run(exabgp, _want(exabgp, ""), [])
    assert exabgp.runs == ""


def test_a_newer_file_while_the_older_is_being_loaded() -> None:
    exabgp = ModelExaBGP()

    class Second(ModelExaBGP):
        pass

    def act(reload: Reload) -> None:
        exabgp.file = "a"
        reload.want("a")
        ordered = exabgp.order_reload

        def order() -> None:
            ordered()
            if exabgp.file == "a":
                exabgp.file = "b"
                reload.want("b")

        exabgp.order_reload = order  # type: ignore[method-assign]

    assert _run(exabgp, act, []) == 1
    assert exabgp.runs == "b"
