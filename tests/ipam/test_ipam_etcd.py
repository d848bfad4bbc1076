"""The stories of IPAM once more, on a real etcd."""

from collections.abc import Iterator

import pytest

from tests.ipam.ipam_grounds import OnEtcd, stories
from tests.ipam.ipam_world import on
from tests.support.etcd import Etcd

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def ground(etcd: Etcd) -> Iterator[None]:
    with on(OnEtcd(etcd)):
        yield


globals().update(stories())
