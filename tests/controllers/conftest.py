"""What the tests of whole processes share."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def log_level_stays() -> Iterator[None]:
    """A process sets the level of all logging, which is not to reach other tests."""
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)
