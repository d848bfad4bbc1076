"""User name and password at etcd: logins that expire, are refused, and lose a permission."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.aio import run
from tests.support.etcd import Etcd, b64
from tests.support.links import PATIENT, READ, WRITE, link_to
from tests.support.proxy import Proxy
from tortie.core.errors import Unauthorized
from tortie.datastore import etcdlink
from tortie.datastore import etcdproto as proto
from tortie.datastore.etcdchannel import RpcError

pytestmark = pytest.mark.kernel


class Guarded:
    """An etcd with authentication: user `calico` may read and write below /calico/."""

    def __init__(self, server: Etcd) -> None:
        self.server = server
        for name, password in (("root", "r"), ("calico", "secret")):
            server.ask("auth/user/add", name=name, password=password)
        server.ask("auth/role/add", name="root")
        server.ask("auth/user/grant", user="root", role="root")
        server.ask("auth/role/add", name="calico")
        self._grant(token="")
        server.ask("auth/user/grant", user="calico", role="calico")
        server.ask("auth/enable")

    def _grant(self, token: str) -> None:
        permission = {"permType": "READWRITE", "key": b64("/calico/"), "range_end": b64("/calico0")}
        self.server.ask("auth/role/grant", token, name="calico", perm=permission)

    @property
    def token(self) -> str:
        return str(self.server.ask("auth/authenticate", name="root", password="r")["token"])

    def revoke(self) -> None:
        self.server.ask(
            "auth/role/revoke", self.token, role="calico", key=b64("/calico/"), range_end=b64("/calico0")
        )

    def grant(self) -> None:
        self._grant(self.token)

    def disable(self) -> None:
        self.server.ask("auth/disable", self.token)


@pytest.fixture
def guarded(make_etcd: Callable[..., Etcd]) -> Guarded:
    return Guarded(make_etcd("--bcrypt-cost=4"))


ALLOWED = proto.put(b"/calico/k", b"v")
LOGIN: dict[str, Any] = {"etcdUsername": "calico", "etcdPassword": "secret"}


def test_a_login_is_kept_renewed_and_regained(make_etcd: Callable[..., Etcd]) -> None:
    life = 3  # seconds of a token that is not used
    guarded = Guarded(make_etcd(f"--auth-token-ttl={life}", "--bcrypt-cost=4"))

    async def scenario() -> None:
        link = link_to(guarded.server.endpoint, **LOGIN)
        await link.call(proto.PUT, ALLOWED)
        await asyncio.gather(*(link.call(proto.PUT, ALLOWED) for _ in range(10)))
        connection: Any = link._connection
        token = connection.token

        async with asyncio.timeout(180):
            with pytest.raises(RpcError, match="invalid auth token"):
                while True:
                    await connection.call(proto.PUT, ALLOWED, PATIENT.call)
                    await asyncio.sleep(life + 1.1)  # it looks at them once a second
        before = guarded.server.ask("kv/range", guarded.token, key=b64("/calico/k"))
        await asyncio.gather(*(link.call(proto.PUT, ALLOWED) for _ in range(10)))
        after = guarded.server.ask("kv/range", guarded.token, key=b64("/calico/k"))
        assert int(after["kvs"][0]["version"]) - int(before["kvs"][0]["version"]) == 10
        renewed: Any = link._connection
        assert renewed.token not in ("", token)
        await guarded.server.restart_async()  # forgets all simple tokens
        await link.call(proto.PUT, ALLOWED)
        await link.close()

    run(scenario())


def test_a_wrong_password_is_a_definite_answer_and_not_hammered(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with Proxy(guarded.server.endpoint) as proxy:
            monkeypatch.setattr(etcdlink, "_LOGIN_PAUSE", 1000.0)
            for wrong in ({"etcdUsername": "calico"}, {"etcdUsername": "nobody"}):
                link = link_to(proxy.endpoint, **LOGIN | {"etcdPassword": "wrong"} | wrong)
                for _ in range(10):
                    with pytest.raises(Unauthorized, match="authentication failed"):
                        await link.call(proto.PUT, ALLOWED)
                guarded.server.ask("auth/user/changepw", guarded.token, name="calico", password="wrong")
                with pytest.raises(Unauthorized):  # the refusal is remembered for a while
                    await link.call(proto.PUT, ALLOWED)
                with monkeypatch.context() as later:
                    later.setattr(etcdlink, "_LOGIN_PAUSE", 0.0)
                    if wrong["etcdUsername"] == "calico":
                        await link.call(proto.PUT, ALLOWED)
                await link.close()

    run(scenario())


def test_without_credentials_a_guarded_etcd_refuses(guarded: Guarded) -> None:
    async def scenario() -> None:
        for half in (
            dict[str, Any](),
            {"etcdUsername": "calico"},
            {"etcdPassword": "secret"},
        ):  # Calico needs both too
            link = link_to(guarded.server.endpoint, **half)
            with pytest.raises(Unauthorized, match="user name is empty"):
                await link.call(proto.PUT, ALLOWED)
            await link.close()

    run(scenario())


def test_a_missing_permission_costs_no_new_login(guarded: Guarded) -> None:
    async def scenario() -> None:
        link = link_to(guarded.server.endpoint, **LOGIN)
        await link.call(proto.PUT, ALLOWED)
        connection = link._connection
        with pytest.raises(Unauthorized, match="permission denied"):
            await link.call(proto.PUT, WRITE)
        with pytest.raises(Unauthorized, match="permission denied"):
            await link.call(proto.RANGE, READ)
        with pytest.raises(Unauthorized, match="permission denied"):
            await anext(link.watch(proto.watch(b"k", b"", 1)))
        assert link._connection is connection
        guarded.revoke()
        with pytest.raises(Unauthorized):
            await link.call(proto.PUT, ALLOWED)
        with pytest.raises(Unauthorized):
            await anext(link.watch(proto.watch(b"/calico/k", b"", 1)))
        guarded.grant()
        await link.call(proto.PUT, ALLOWED)
        await link.close()

    run(scenario())


def test_an_expired_login_is_renewed_for_a_watch(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcdlink, "_LOGIN_FRESH", 0.0)

    async def scenario() -> None:
        link = link_to(guarded.server.endpoint, **LOGIN)
        await link.call(proto.PUT, ALLOWED)
        connection: Any = link._connection
        connection.token = "expired.1"
        with pytest.raises(Unauthorized):
            await anext(link.watch(proto.watch(b"/calico/k", b"", 1)))
        assert (await anext(link.watch(proto.watch(b"/calico/k", b"", 1)))).created
        await link.close()

    run(scenario())


def test_authentication_switched_off_and_on(guarded: Guarded) -> None:
    async def scenario() -> None:
        guarded.disable()
        link = link_to(guarded.server.endpoint, **LOGIN)
        await link.call(proto.PUT, ALLOWED)
        guarded.server.ask("auth/enable")
        await link.call(proto.PUT, ALLOWED)
        await link.close()

    run(scenario())
