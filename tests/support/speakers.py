"""`pytest --speaker bird`: who speaks BGP on the nodes of labs, in every test that does not say so itself.

A test that is to run with each, whatever the option, is marked `with_both`; one that has no meaning with the
chosen speaker is marked `only_with(speaker, reason)` and left out.
"""

import typing

import pytest

from tortie.core.speaker import Speaker

_SPEAKERS = [one for one in typing.get_args(Speaker) if one != "none"]

# The scope is that of what is made with it: a module's lab is made once for each.
with_both = pytest.mark.parametrize("speaker", _SPEAKERS, scope="module")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--speaker", choices=_SPEAKERS, default=_SPEAKERS[0], help="who speaks BGP on the nodes of labs"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = config.getoption("--speaker")
    foreign = [
        item for item in items if (mark := item.get_closest_marker("only_with")) and mark.args[0] != chosen
    ]
    config.hook.pytest_deselected(items=foreign)
    items[:] = [item for item in items if item not in foreign]


@pytest.fixture(scope="session")
def speaker(request: pytest.FixtureRequest) -> Speaker:
    """Who speaks BGP on the nodes."""
    chosen: Speaker = request.config.getoption("--speaker")
    return chosen
