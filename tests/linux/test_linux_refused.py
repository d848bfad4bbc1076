"""Chains that stand closed are opened, all but those that are refused, in transactions of bounded size."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.linux import refused
from tortie.linux.refused import Key

pytestmark = pytest.mark.unit


@given(count=st.integers(0, 300), bad=st.sets(st.integers(0, 299)), one_by_one=st.booleans())
def test_what_is_good_is_opened(count: int, bad: set[int], one_by_one: bool) -> None:
    keys = [("chain", str(number)) for number in range(count)]
    rotten = {key: "no" for key in keys if int(key[1]) in bad}
    written: list[Key] = []
    sizes: list[int] = []

    async def write(together: Sequence[Key]) -> Mapping[Key, str]:
        sizes.append(len(together))
        found = {key: rotten[key] for key in together if key in rotten}
        if not found:
            written.extend(together)
        return dict([*found.items()][:1]) if one_by_one else found

    replaced = {("chain", "before"): "refused before"}
    refused.close(keys, replaced)
    assert replaced.keys() == {("chain", "before"), *keys}
    asyncio.run(refused.open_again(keys, replaced, write))
    assert replaced == {("chain", "before"): "refused before"} | rotten
    assert sorted(written) == sorted(set(keys) - rotten.keys())
    assert max(sizes, default=0) <= 64
