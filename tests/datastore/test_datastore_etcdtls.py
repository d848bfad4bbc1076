"""TLS to etcd: certificates that are missing, wrong, expired, somebody else's, and exchanged."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.aio import run
from tests.support.etcd import Etcd
from tests.support.links import link_to, read
from tests.support.proxy import Proxy
from tortie.core.errors import DatastoreUnreachable
from tortie.datastore.etcdchannel import explained

pytestmark = pytest.mark.kernel


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
        ({"etcdCACertFile": str(garbage)}, "is no PEM"),
        ({"etcdCACertFile": "/nowhere/ca"}, "etcdCACertFile = '/nowhere/ca': cannot be read: No such file"),
        ({"etcdCertFile": "", "etcdKeyFile": ""}, "127.0.0.1"),
        ({"etcdCertFile": expired["cert"], "etcdKeyFile": expired["key"]}, "127.0.0.1"),
        ({"etcdKeyFile": expired["key"]}, "the key belongs to another certificate"),
    ]:
        with pytest.raises(DatastoreUnreachable, match="no etcd endpoint answers") as caught:
            run(read_once(tls_etcd.endpoint, **client | change))
        assert cause in str(caught.value), change
    with pytest.raises(DatastoreUnreachable):
        run(read_once(tls_etcd.endpoint.replace("https", "http")))


def test_a_refused_client_certificate_is_explained() -> None:
    """Not asked of a server above: whether its alert or its hanging up is seen first is chance."""
    assert "another client certificate" in explained("Unwrap failed (TSI_DATA_CORRUPTED)")
    assert explained("Socket closed") == "Socket closed" and explained("") == ""


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


def test_a_distant_etcd_is_reached(tls_etcd: Etcd, client: dict[str, Any]) -> None:
    """A handshake of several slow round trips is not a failed one."""

    async def scenario() -> None:
        async with Proxy(tls_etcd.endpoint) as proxy:
            proxy.delay = 0.15
            link = link_to(proxy.endpoint, **client)
            assert await read(link) == [] and proxy.accepted == 1
            await link.close()

    run(scenario())


def test_grpcs_core_does_not_write_past_our_log(tls_etcd: Etcd) -> None:
    script = f"""
import asyncio
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcdlink import EtcdLink
from tortie.datastore.etcdproto import RANGE
from tortie.core.errors import DatastoreUnreachable
async def main():
    link = EtcdLink(DatastoreConfig(etcdEndpoints=("{tls_etcd.endpoint}",)))
    try:
        await link.call(RANGE, b"")
    except DatastoreUnreachable as err:  # a certificate that it does not trust
        print("CERTIFICATE_VERIFY_FAILED" in str(err))
    await link.close()
asyncio.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-c", script], capture_output=True, text=True, timeout=300, check=True
    )
    assert (ended.stdout, ended.stderr) == ("True\n", "")
