"""The link to etcd: dead and deaf endpoints, lost replies, TLS, logins, a cluster that loses members."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.aio import eventually, open_files, others, run, until
from tests.support.etcd import Etcd, b64, cluster, free_port, wait_until
from tests.support.proxy import DeafListener, Proxy
from tortie.core.errors import DatastoreUnreachable, Unauthorized
from tortie.datastore import etcdlink
from tortie.datastore import etcdproto as proto
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcdchannel import RpcError, Timing
from tortie.datastore.etcdlink import EtcdLink

pytestmark = pytest.mark.kernel

QUICK = Timing(dial=1.0, call=0.5, quiet=0.2, silent=0.3)
READ = proto.range_(b"k")
WRITE = proto.put(b"k", b"v")


def link_to(*endpoints: str, timing: Timing = QUICK, first: int = 0, **more: Any) -> EtcdLink:
    return EtcdLink(DatastoreConfig(etcdEndpoints=endpoints, **more), timing, first)


async def read(link: EtcdLink, key: bytes = b"k") -> list[bytes]:
    reply = await link.call(proto.RANGE, proto.range_(key))
    return [entry.value for entry in reply.entries]


def closed_port() -> str:
    return f"http://127.0.0.1:{free_port()}"


# --- endpoints that do not serve ----------------------------------------------------------------


def test_a_refused_connection_says_so_at_once() -> None:
    async def scenario() -> None:
        link = link_to(closed_port())
        for attempt in (link.call(proto.RANGE, READ), link.call(proto.PUT, WRITE)):
            with pytest.raises(DatastoreUnreachable, match=r"no etcd endpoint answers.*refused"):
                async with asyncio.timeout(0.5):
                    await attempt
        with pytest.raises(DatastoreUnreachable, match="refused"):
            await anext(link.watch(proto.watch(b"k", b"", 1)))
        await link.close()

    run(scenario())


@pytest.mark.parametrize("accepting", [True, False], ids=["accepts-and-is-silent", "drops-syns"])
def test_a_black_hole_costs_one_dial_timeout_however_many_wait(accepting: bool) -> None:
    async def scenario() -> None:
        with DeafListener(accepting) as deaf:
            link = link_to(deaf.endpoint)
            started = asyncio.get_running_loop().time()
            results = await asyncio.gather(
                *(link.call(proto.RANGE, READ) for _ in range(20)), return_exceptions=True
            )
            took = asyncio.get_running_loop().time() - started
            assert all(isinstance(err, DatastoreUnreachable) for err in results)
            assert "no answer" in str(results[0])
            assert took < 2 * QUICK.dial + 0.5  # a read may dial twice, but nobody queues behind another
            await link.close()

    run(scenario())


def test_dead_and_deaf_endpoints_are_passed_over(etcd: Etcd) -> None:
    etcd.put("k", "here")

    async def scenario() -> None:
        with DeafListener() as drops, DeafListener(accepting=True) as silent:
            link = link_to(closed_port(), drops.endpoint, silent.endpoint, etcd.endpoint)
            assert await read(link) == [b"here"]
            async with asyncio.timeout(0.3):  # found once, it is remembered
                assert await read(link) == [b"here"]
            await link.close()

    run(scenario())


def test_the_first_endpoint_can_be_chosen(etcd: Etcd) -> None:
    async def scenario() -> None:
        async with Proxy(etcd.endpoint) as one, Proxy(etcd.endpoint) as two:
            for first in (0, 1, 2, 3):
                link = link_to(one.endpoint, two.endpoint, first=first)
                await read(link)
                await link.close()
            assert (one.accepted, two.accepted) == (2, 2)

    run(scenario())


def test_something_else_than_etcd_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        async def http(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(http, "127.0.0.1", 0)
        endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        link = link_to(endpoint)
        with pytest.raises(DatastoreUnreachable, match=endpoint):
            await link.call(proto.RANGE, READ)
        await link.close()
        server.close()

    run(scenario())


# --- connections that break ---------------------------------------------------------------------


def test_a_read_survives_a_reset_a_write_is_never_repeated(etcd: Etcd) -> None:
    etcd.put("k", "v")

    async def scenario() -> None:
        async with Proxy(etcd.endpoint) as proxy:
            link = link_to(proxy.endpoint)
            await read(link)
            proxy.swallow_replies = True
            reading = asyncio.ensure_future(read(link))
            await asyncio.sleep(0.05)
            proxy.swallow_replies = False
            proxy.cut()
            assert await reading == [b"v"]
            before = etcd.revision
            proxy.swallow_replies = True
            writing = asyncio.ensure_future(link.call(proto.PUT, WRITE))
            await eventually(lambda: etcd.revision > before, what="the write to arrive")
            proxy.swallow_replies = False
            proxy.cut()
            with pytest.raises(DatastoreUnreachable):
                await writing
            assert etcd.revision == before + 1
            assert await read(link) == [b"v"]
            await link.close()

    run(scenario())


def test_a_lost_reply_to_a_write_is_ambiguous_and_not_repeated(etcd: Etcd) -> None:
    async def scenario() -> None:
        async with Proxy(etcd.endpoint) as proxy, Proxy(etcd.endpoint) as other:
            link = link_to(proxy.endpoint, other.endpoint)
            await read(link)
            before = etcd.revision
            proxy.swallow_replies = True
            with pytest.raises(DatastoreUnreachable, match="no answer in time"):
                await link.call(proto.PUT, WRITE)
            assert etcd.revision == before + 1  # it happened, once
            assert await read(link) == [b"v"] and other.accepted == 1
            await link.close()

    run(scenario())


def test_a_read_that_times_out_is_tried_at_another_endpoint(etcd: Etcd) -> None:
    etcd.put("k", "v")

    async def scenario() -> None:
        async with Proxy(etcd.endpoint) as deaf, Proxy(etcd.endpoint) as other:
            link = link_to(deaf.endpoint, other.endpoint)
            await read(link)
            deaf.swallow_requests = True
            assert await read(link) == [b"v"]
            assert other.accepted == 1
            await link.close()

    run(scenario())


def test_one_callers_failure_leaves_the_others_alone(etcd: Etcd) -> None:
    """One call of many on a connection runs into its deadline: nobody else's call or watch ends."""
    etcd.put("k", "v")

    async def scenario() -> None:
        link = link_to(etcd.endpoint, timing=Timing(quiet=5, silent=5, call=5))
        watching = link.watch(proto.watch(b"k", b"", etcd.revision + 1))
        assert (await anext(watching)).created
        connection: Any = link._connection
        etcd.stop_answering()
        slow = [asyncio.ensure_future(read(link)) for _ in range(5)]
        await asyncio.sleep(0.05)
        with pytest.raises(Exception, match="DEADLINE_EXCEEDED"):
            await connection.call(proto.RANGE, READ, 0.1)
        await link._drop(connection)  # what a deadline leads to
        etcd.resume()
        assert await asyncio.gather(*slow) == [[b"v"]] * 5
        assert await read(link) == [b"v"] and link._connection is not connection
        etcd.put("k", "w")
        assert (await anext(watching)).events[0][1].value == b"w"
        channel = connection._channel
        await watching.aclose()
        assert channel._channel.closed()  # its last user is gone
        await link.close()

    run(scenario())


def test_etcd_killed_and_restarted_is_found_again(etcd: Etcd) -> None:
    async def scenario() -> None:
        link = link_to(etcd.endpoint)
        for number in range(5):
            await link.call(proto.PUT, proto.put(b"k", str(number).encode()))
            etcd.kill()
            with pytest.raises(DatastoreUnreachable):
                await read(link)
            await etcd.restart_async()
            assert await read(link) == [str(number).encode()]  # at once, without a time of penance
        await link.close()

    run(scenario())


def test_writes_under_fire_are_each_done_at_most_once(etcd: Etcd) -> None:
    """Connections are reset again and again; every acknowledged write is there, none is doubled."""

    async def scenario() -> None:
        async with Proxy(etcd.endpoint) as proxy:
            link = link_to(proxy.endpoint)
            done, lost = [], []

            async def writer(number: int) -> None:
                for turn in range(30):
                    key = f"w/{number}/{turn}"
                    absent = proto.compare_version(key.encode(), 0)
                    request = proto.txn([absent], proto.op_put(key.encode(), b"v"), proto.op_range(b"x"))
                    try:
                        assert (await link.call(proto.TXN, request)).succeeded, f"{key} was written twice"
                        done.append(key)
                    except DatastoreUnreachable:
                        lost.append(key)

            proxy.cut_every = 10
            await asyncio.gather(*(writer(number) for number in range(8)))
            assert len(done) + len(lost) == 240 and done and lost
            assert set(done) <= set(etcd.entries("w/")) <= set(done) | set(lost)
            await link.close()

    run(scenario())


# --- life in an asyncio program -----------------------------------------------------------------


def test_many_callers_share_one_connection(etcd: Etcd) -> None:
    async def scenario() -> None:
        async with Proxy(etcd.endpoint) as proxy:
            link = link_to(proxy.endpoint)
            keys = [f"k{number}".encode() for number in range(200)]
            await asyncio.gather(*(link.call(proto.PUT, proto.put(key, key)) for key in keys))
            assert await asyncio.gather(*(read(link, key) for key in keys)) == [[key] for key in keys]
            assert proxy.accepted == 1
            await link.close()

    run(scenario())


def test_a_cancelled_caller_stops_and_harms_nobody(etcd: Etcd) -> None:
    etcd.put("k", "v")

    async def scenario() -> None:
        link = link_to(etcd.endpoint, timing=Timing())
        etcd.stop_answering()
        dialing = [asyncio.ensure_future(read(link)) for _ in range(3)]
        await asyncio.sleep(0.05)
        dialing[0].cancel()  # who happened to start the dialling
        await asyncio.sleep(0.05)
        etcd.resume()
        assert await asyncio.gather(*dialing[1:]) == [[b"v"]] * 2
        etcd.stop_answering()
        calling = [asyncio.ensure_future(read(link)) for _ in range(3)]
        await asyncio.sleep(0.05)
        calling[0].cancel()
        await asyncio.sleep(0.05)
        etcd.resume()
        assert await asyncio.gather(*calling[1:]) == [[b"v"]] * 2
        assert dialing[0].cancelled() and calling[0].cancelled()
        await link.close()

    run(scenario())


@pytest.mark.parametrize("moment", ["dialing", "calling", "watching"])
def test_close_ends_what_is_under_way_with_an_error_not_a_cancellation(etcd: Etcd, moment: str) -> None:
    async def scenario() -> None:
        link = link_to(etcd.endpoint, timing=Timing())
        watching = link.watch(proto.watch(b"k", b"", etcd.revision + 1))
        waiting: list[asyncio.Future[Any]]
        if moment == "dialing":
            etcd.stop_answering()
            waiting = [asyncio.ensure_future(read(link)) for _ in range(3)]
        elif moment == "calling":
            await read(link)
            etcd.stop_answering()
            waiting = [asyncio.ensure_future(read(link)) for _ in range(3)]
        else:
            await anext(watching)
            waiting = [asyncio.ensure_future(anext(watching))]
        await asyncio.sleep(0.05)
        await link.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [DatastoreUnreachable] * len(waiting)
        with pytest.raises(DatastoreUnreachable, match="closed"):
            await read(link)
        await watching.aclose()
        await link.close()

    run(scenario())


def test_nothing_leaks_over_many_outages(etcd: Etcd) -> None:
    """Files, tasks, gRPC calls: the same after a hundred broken connections as after three."""

    async def outages(proxy: Proxy, link: EtcdLink, count: int) -> None:
        for _ in range(count):
            watching = link.watch(proto.watch(b"k", b"", etcd.revision + 1))
            await anext(watching)
            reading = asyncio.ensure_future(read(link))
            await asyncio.sleep(0)
            proxy.cut()
            with pytest.raises(DatastoreUnreachable):
                while True:
                    await anext(watching)
            await asyncio.gather(reading, return_exceptions=True)

    async def scenario() -> None:
        async with Proxy(etcd.endpoint) as proxy:
            link = link_to(proxy.endpoint)
            await outages(proxy, link, 3)
            await eventually(lambda: proxy.connections <= 1)
            files, tasks = open_files(), len(others())
            await outages(proxy, link, 100)
            await eventually(lambda: proxy.connections <= 1)
            await eventually(lambda: open_files() <= files + 2 and len(others()) <= tasks + 2)
            await link.close()

    run(scenario())


def test_one_link_serves_one_event_loop_after_another(etcd: Etcd) -> None:
    """As a command line that calls asyncio.run more than once does."""
    etcd.put("k", "v")
    link = link_to(etcd.endpoint)
    assert [asyncio.run(read(link)) for _ in range(3)] == [[b"v"]] * 3
    asyncio.run(link.close())

    async def fresh() -> list[bytes]:
        own = link_to(etcd.endpoint)
        try:
            return await read(own)
        finally:
            await own.close()

    assert asyncio.run(fresh()) == [b"v"]
    before = open_files()
    assert [asyncio.run(fresh()) for _ in range(10)] == [[b"v"]] * 10
    wait_until(lambda: open_files() <= before, what="gRPC to close its files")


def test_etcd_is_reached_in_spite_of_a_proxy_setting(etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", closed_port())
    monkeypatch.setenv("https_proxy", closed_port())

    async def scenario() -> None:
        link = link_to(etcd.endpoint)
        assert await read(link) == []
        await link.close()

    run(scenario())


def test_grpcs_core_does_not_write_past_our_log() -> None:
    script = f"""
import asyncio
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcdlink import EtcdLink
from tortie.datastore.etcdproto import RANGE
from tortie.core.errors import DatastoreUnreachable
async def main():
    link = EtcdLink(DatastoreConfig(etcdEndpoints=("https://127.0.0.1:{free_port()}",)))
    try:
        await link.call(RANGE, b"")
    except DatastoreUnreachable:
        pass
    await link.close()
asyncio.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stderr == "" == ended.stdout


# --- TLS ----------------------------------------------------------------------------------------


class Authority:
    """A certificate authority and what it signed, made with openssl."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        self.name = name
        folder.mkdir(exist_ok=True)
        self._openssl(
            f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name}"
            f" -keyout {name}.key -out {name}.crt"
        )
        self.ca = str(folder / f"{name}.crt")

    def sign(self, name: str, alternative: str, days: int = 2) -> dict[str, str]:
        """The paths of a new certificate and its key; negative days make one that has expired."""
        (self.folder / f"{name}.ext").write_text(
            f"subjectAltName={alternative}\nextendedKeyUsage=serverAuth,clientAuth\n"
        )
        self._openssl(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
            f" -keyout {name}.key -out {name}.csr -subj /CN={name}"
        )
        self._openssl(
            f"x509 -req -in {name}.csr -CA {self.name}.crt -CAkey {self.name}.key -CAcreateserial"
            f" -days {days} -extfile {name}.ext -out {name}.crt"
        )
        return {"cert": str(self.folder / f"{name}.crt"), "key": str(self.folder / f"{name}.key")}

    def _openssl(self, arguments: str) -> None:
        subprocess.run(["openssl", *arguments.split()], cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "a")


@pytest.fixture(scope="session")
def tls_etcd(authority: Authority) -> Iterator[Etcd]:
    """An etcd that wants client certificates."""
    pair = authority.sign("server", "IP:127.0.0.1,DNS:localhost")
    server = Etcd(
        f"--cert-file={pair['cert']}",
        f"--key-file={pair['key']}",
        "--client-cert-auth",
        f"--trusted-ca-file={authority.ca}",
        scheme="https",
    ).start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def client(authority: Authority) -> dict[str, Any]:
    pair = authority.sign("client", "DNS:client")
    return {
        "etcdCACertFile": authority.ca,
        "etcdCertFile": pair["cert"],
        "etcdKeyFile": pair["key"],
    }


async def read_once(endpoint: str, **tls: Any) -> list[bytes]:
    link = link_to(endpoint, **tls)
    try:
        return await read(link)
    finally:
        await link.close()


def test_tls_with_files_and_inline(tls_etcd: Etcd, client: dict[str, Any]) -> None:
    assert run(read_once(tls_etcd.endpoint, **client)) == []
    assert run(read_once(tls_etcd.endpoint.replace("127.0.0.1", "localhost"), **client)) == []
    inline = {name.removesuffix("File"): Path(path).read_text() for name, path in client.items()}
    assert run(read_once(tls_etcd.endpoint, **inline)) == []


def test_every_tls_fault_names_endpoint_and_cause(
    tls_etcd: Etcd, client: dict[str, Any], authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "b", "other")
    expired = authority.sign("expired", "DNS:client", days=-1)
    garbage = tmp_path / "garbage"
    garbage.write_text("not PEM")
    for change, cause in [
        ({"etcdCACertFile": other.ca}, "CERTIFICATE_VERIFY_FAILED"),
        ({"etcdCACertFile": ""}, "CERTIFICATE_VERIFY_FAILED"),  # signed by nobody whom the host knows
        ({"etcdCACertFile": str(garbage)}, "127.0.0.1"),
        ({"etcdCACertFile": "/nowhere/ca"}, "etcdCACertFile = '/nowhere/ca': cannot be read: No such file"),
        ({"etcdCertFile": "", "etcdKeyFile": ""}, "127.0.0.1"),
        ({"etcdCertFile": expired["cert"], "etcdKeyFile": expired["key"]}, "127.0.0.1"),
        ({"etcdKeyFile": expired["key"]}, "127.0.0.1"),  # not the certificate's
    ]:
        with pytest.raises(DatastoreUnreachable, match="no etcd endpoint answers") as caught:
            run(read_once(tls_etcd.endpoint, **client | change))
        assert cause in str(caught.value), change
    with pytest.raises(DatastoreUnreachable):
        run(read_once(tls_etcd.endpoint.replace("https", "http")))


def test_the_servers_certificate_must_be_for_the_name_dialled_and_in_force(
    make_etcd: Callable[..., Etcd], authority: Authority, etcd: Etcd
) -> None:
    for name, alternative, days, cause in [
        ("elsewhere", "DNS:other.example", 2, "Hostname Verification"),
        ("old", "IP:127.0.0.1", -1, "CERTIFICATE_VERIFY_FAILED: certificate has expired"),
    ]:
        pair = authority.sign(name, alternative, days)
        server = make_etcd(f"--cert-file={pair['cert']}", f"--key-file={pair['key']}", scheme="https")
        with pytest.raises(DatastoreUnreachable, match=cause):
            run(read_once(server.endpoint, etcdCACertFile=authority.ca))
    with pytest.raises(DatastoreUnreachable):  # TLS to a port without
        run(read_once(etcd.endpoint.replace("http", "https"), etcdCACertFile=authority.ca))


def test_rotated_certificates_are_picked_up_with_the_next_connection(
    make_etcd: Callable[..., Etcd], tmp_path: Path
) -> None:
    """The authority itself changes, on both sides, under a running link."""
    old, new = Authority(tmp_path / "old", "old"), Authority(tmp_path / "new", "new")
    paths = {name: tmp_path / name for name in ("ca", "cert", "key", "client-cert", "client-key")}

    def install(authority: Authority) -> None:
        server = authority.sign("server", "IP:127.0.0.1")
        client = authority.sign("client", "DNS:client")
        for name, source in {
            "ca": authority.ca,
            "cert": server["cert"],
            "key": server["key"],
            "client-cert": client["cert"],
            "client-key": client["key"],
        }.items():
            shutil.copy(source, paths[name])

    install(old)
    server = make_etcd(
        f"--cert-file={paths['cert']}",
        f"--key-file={paths['key']}",
        "--client-cert-auth",
        f"--trusted-ca-file={paths['ca']}",
        scheme="https",
    )

    async def scenario() -> None:
        link = link_to(
            server.endpoint,
            etcdCACertFile=str(paths["ca"]),
            etcdCertFile=str(paths["client-cert"]),
            etcdKeyFile=str(paths["client-key"]),
        )
        assert await read(link) == []
        os.rename(paths["client-key"], tmp_path / "away")  # in the middle of being replaced
        assert await read(link) == []
        server.kill()
        with pytest.raises(DatastoreUnreachable, match="etcdKeyFile"):
            await read(link)
        install(new)
        await server.restart_async()
        assert await read(link) == []
        await link.close()

    run(scenario())


# --- user name and password ---------------------------------------------------------------------


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
    return Guarded(make_etcd("--auth-token-ttl=1", "--bcrypt-cost=4"))


ALLOWED = proto.put(b"/calico/k", b"v")
LOGIN: dict[str, Any] = {"etcdUsername": "calico", "etcdPassword": "secret"}


def test_a_login_is_kept_renewed_and_regained(guarded: Guarded) -> None:
    async def scenario() -> None:
        link = link_to(guarded.server.endpoint, **LOGIN)
        await link.call(proto.PUT, ALLOWED)
        await asyncio.gather(*(link.call(proto.PUT, ALLOWED) for _ in range(10)))
        connection: Any = link._connection
        token = connection.token

        async with asyncio.timeout(20):
            with pytest.raises(RpcError, match="invalid auth token"):
                while True:
                    await connection.call(proto.PUT, ALLOWED, 1)
                    await asyncio.sleep(2.1)  # longer than a token lives unused
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
            for wrong in ({"etcdUsername": "calico"}, {"etcdUsername": "nobody"}):
                link = link_to(proxy.endpoint, **LOGIN | {"etcdPassword": "wrong"} | wrong)
                for _ in range(10):
                    with pytest.raises(Unauthorized, match="authentication failed"):
                        await link.call(proto.PUT, ALLOWED)
                guarded.server.ask("auth/user/changepw", guarded.token, name="calico", password="wrong")
                with pytest.raises(Unauthorized):  # the refusal is remembered for a while
                    await link.call(proto.PUT, ALLOWED)
                monkeypatch.setattr(etcdlink, "_LOGIN_PAUSE", 0.0)
                if wrong["etcdUsername"] == "calico":
                    await link.call(proto.PUT, ALLOWED)
                monkeypatch.undo()
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
            with pytest.raises(Unauthorized):
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
        link = link_to(guarded.server.endpoint, timing=Timing(), **LOGIN)
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


# --- a cluster ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three() -> Iterator[list[Etcd]]:
    made = cluster(3)
    yield made
    for member in made:
        member.close()


@pytest.fixture
def members(three: list[Etcd]) -> list[Etcd]:
    """A cluster of three, all running."""
    for member in three:
        if not member.running:
            member.kill()
            member.start(wait=False)
    for member in three:
        member.wait_healthy()
    return three


def leader_of(members: list[Etcd]) -> Etcd:
    """The leader among the members, once it is known to one that runs."""
    found: list[Etcd] = []

    def known() -> bool:
        for member in (m for m in members if m.running):
            try:
                status = member.ask("maintenance/status")
            except (RuntimeError, OSError):
                continue
            if status.get("leader") == status["header"]["member_id"]:
                found.append(member)
                return True
        return False

    wait_until(known, what="a leader")
    return found[0]


def test_the_loss_of_the_leader_is_survived(members: list[Etcd]) -> None:
    async def scenario() -> None:
        leader = leader_of(members)
        link = link_to(*(member.endpoint for member in members), first=members.index(leader))
        await link.call(proto.PUT, proto.put(b"k", b"1"))
        leader.kill()

        await until(lambda: read(link))
        assert await read(link) == [b"1"]
        await asyncio.to_thread(leader_of, members)
        await link.call(proto.PUT, proto.put(b"k", b"2"))
        assert await read(link) == [b"2"]
        await link.close()

    run(scenario())


def test_a_member_cut_off_from_the_others_is_left(members: list[Etcd]) -> None:
    """It answers, and would serve a watch in silence for ever: it must be noticed and passed over."""

    async def scenario() -> None:
        leader = leader_of(members)
        lonely = next(member for member in members if member is not leader)
        rest = [member for member in members if member is not lonely]
        link = link_to(
            *(member.endpoint for member in [lonely, *rest]), timing=Timing(dial=3, call=3, quiet=60)
        )
        await link.call(proto.PUT, proto.put(b"k", b"1"))
        watching = link.watch(proto.watch(b"k", b"", 1))
        while not (await anext(watching)).events:
            pass
        for member in rest:
            member.stop_answering()
        with pytest.raises(DatastoreUnreachable, match="no leader"):
            await anext(watching)
        with pytest.raises(DatastoreUnreachable):
            await link.call(proto.PUT, proto.put(b"k", b"2"))
        for member in rest:
            member.resume()
        await asyncio.to_thread(leader_of, members)
        await until(lambda: link.call(proto.PUT, proto.put(b"k", b"3")))
        await link.close()

    run(scenario())


def test_requests_go_on_while_members_are_killed_one_by_one(members: list[Etcd]) -> None:
    async def scenario() -> None:
        link = link_to(*(member.endpoint for member in members), timing=Timing(dial=3, call=3))
        for number, member in enumerate(members):
            member.kill()
            request = proto.put(b"k", str(number).encode())
            await until(partial(link.call, proto.PUT, request))
            assert await read(link) == [str(number).encode()]
            await member.restart_async()
        async with aclosing(link.watch(proto.watch(b"k", b"", 1))) as watching:
            assert (await anext(watching)).created
        await link.close()

    run(scenario())
