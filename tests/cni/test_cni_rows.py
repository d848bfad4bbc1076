"""Every row of the edge cases (Calico IPAM, section 8) about the plugin has a test of its number."""

import re
from types import ModuleType

import pytest

from tests.cni import test_cni_cases, test_cni_cases_kubernetes

pytestmark = pytest.mark.unit

ROWS = set(range(42, 60))  # 42 and 43 are IPAM's as well: tests/ipam/test_ipam_rows.py has the others


@pytest.mark.parametrize("module", [test_cni_cases, test_cni_cases_kubernetes])
def test_every_row_is_told_on_each_datastore(module: ModuleType) -> None:
    found = (re.match(r"test_row_(\d\d)_", name) for name in vars(module))
    assert {int(match[1]) for match in found if match} == ROWS
