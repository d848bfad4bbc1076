"""calicoctl run inside the test process, against a real etcd or a real kube-apiserver."""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.etcd import Etcd
from tests.support.kubernetes import ApiServer, programs
from tortie.calicoctl import main
from tortie.lab.apiserver import ADMIN_TOKEN


@dataclass(frozen=True)
class Result:
    out: str
    err: str
    code: int


class Ctl:
    """Command lines with one datastore; `env` is all that they see of the environment."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = dict(env)

    def run(self, *arguments: str, stdin: str | bytes = "", env: Mapping[str, str] | None = None) -> Result:
        given = stdin.encode() if isinstance(stdin, str) else stdin
        out, err = io.StringIO(), io.StringIO()
        code = main.run(arguments, self.env if env is None else env, io.BytesIO(given), out, err)
        return Result(out.getvalue(), err.getvalue(), code)

    def ok(self, *arguments: str, stdin: str | bytes = "") -> str:
        """stdout of a command that must succeed without a word on stderr."""
        result = self.run(*arguments, stdin=stdin)
        assert (result.code, result.err) == (0, ""), result
        return result.out


def on_etcd(endpoint: str) -> Ctl:
    return Ctl({"DATASTORE_TYPE": "etcdv3", "ETCD_ENDPOINTS": endpoint})


def on_kubernetes(server: ApiServer, folder: Path) -> Ctl:
    """By a kubeconfig, as a person has it; `folder` keeps that."""
    path = folder / "kubeconfig"
    path.write_text(server.kubeconfig(ADMIN_TOKEN))
    return Ctl({"DATASTORE_TYPE": "kubernetes", "KUBECONFIG": str(path)})


@pytest.fixture
def ctl(etcd: Etcd) -> Ctl:
    return on_etcd(etcd.endpoint)


@pytest.fixture
def kube_ctl(apiserver: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ctl:
    """Services it asks kubectl about."""
    monkeypatch.setenv("PATH", f"{programs('kubectl')}:{os.environ['PATH']}")
    return on_kubernetes(apiserver, tmp_path)


@pytest.fixture
def offline() -> Ctl:
    """Nobody listens there."""
    return on_etcd("http://127.0.0.1:1")
