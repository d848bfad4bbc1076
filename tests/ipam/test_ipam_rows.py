"""Every row of the reference's edge cases (Calico IPAM, section 8) about IPAM has a test by its number."""

import re
from types import ModuleType

import pytest

from tests.ipam import test_ipam_etcd, test_ipam_kubernetes

pytestmark = pytest.mark.unit

# 44 to 59 are the plugin's (tests/cni).
# Row 70 is about calicoctl's reports: tests/calicoctl/test_calicoctl_release.py.
ROWS = {*range(1, 44), *range(60, 70), *range(71, 76)}


def rows_of(names: set[str]) -> set[int]:
    return {int(found[1]) for name in names if (found := re.match(r"test_(\d\d)_", name))}


@pytest.mark.parametrize("module", [test_ipam_etcd, test_ipam_kubernetes])
def test_every_row_is_told_on_each_datastore(module: ModuleType) -> None:
    assert rows_of(set(vars(module))) == ROWS
