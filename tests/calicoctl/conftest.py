"""calicoctl run inside the test process, against a real etcd."""

import io
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from tests.support.etcd import Etcd
from tortie.calicoctl import main


@dataclass(frozen=True)
class Result:
    out: str
    err: str
    code: int


class Ctl:
    """Command lines with one datastore; `env` is all that they see of the environment."""

    def __init__(self, endpoint: str) -> None:
        self.env: dict[str, str] = {"DATASTORE_TYPE": "etcdv3", "ETCD_ENDPOINTS": endpoint}

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


@pytest.fixture
def ctl(etcd: Etcd) -> Ctl:
    return Ctl(etcd.endpoint)


@pytest.fixture
def offline() -> Ctl:
    """Nobody listens there."""
    return Ctl("http://127.0.0.1:1")
