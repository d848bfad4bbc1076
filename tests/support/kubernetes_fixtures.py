"""pytest's view of tests/support/kubernetes.py; conftest.py hands these fixtures to every test."""

from collections.abc import Iterator

import pytest

from tests.support.kubernetes import ApiServer


@pytest.fixture(scope="session")
def apiserver_process() -> Iterator[ApiServer]:
    """One server for the whole run; tests take it as `apiserver`."""
    server = ApiServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def apiserver(apiserver_process: ApiServer) -> ApiServer:
    """A running API server with our custom resources and nothing in them. A test may stop it."""
    if not apiserver_process.etcd.running:
        apiserver_process.etcd.restart()
    if not apiserver_process.running:
        apiserver_process.start_server()
    apiserver_process.wipe()
    return apiserver_process
