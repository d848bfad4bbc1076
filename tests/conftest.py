"""Fixtures shared by all rooms."""

import logging
import os
import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(
    0, os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)  # for tests.netns_lab, tests.support

from tests.netns_lab import Namespace
from tests.support.etcd_fixtures import backend, etcd, etcd_process, make_etcd
from tests.support.guest_run import pytest_configure
from tests.support.kubernetes_fixtures import apiserver, apiserver_process
from tests.support.speakers import pytest_addoption, pytest_collection_modifyitems, speaker
from tortie.core.log import LineFormatter

# How long an example takes says how busy the machine is: no test is timed. `tortie` tries the same examples
# each time, so that what fails is what was changed; --hypothesis-profile=random looks further.
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("tortie", settings.get_profile("random"), derandomize=True)
settings.load_profile("tortie")

__all__ = [
    "apiserver",
    "apiserver_process",
    "backend",
    "etcd",
    "etcd_process",
    "make_etcd",
    "make_netns",
    "netns",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "speaker",
]


@pytest.fixture(autouse=True)
def _root_logger_as_it_was() -> Iterator[None]:
    """A test that sets logging up, as a process at its start, does not decide what others' caplog sees."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    root.handlers[:] = [one for one in root.handlers if not isinstance(one.formatter, LineFormatter)]


@pytest.fixture
def make_netns() -> Iterator[Callable[[], Namespace]]:
    """Makes fresh network namespaces; all end with the test."""
    made: list[Namespace] = []

    def make() -> Namespace:
        made.append(Namespace())
        return made[-1]

    yield make
    for namespace in made:
        namespace.close()


@pytest.fixture
def netns(make_netns: Callable[[], Namespace]) -> Namespace:
    """One fresh network namespace with loopback up."""
    return make_netns()
