"""Keys: the same for the same content in any order, another for anything else."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from pipeline.store.keys import content_key, stage_key

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)


def reordered(value: object) -> object:
    """The same with the keys of every dictionary in the opposite order."""
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(each) for each in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(), VALUES))
def test_the_order_of_keys_means_nothing(inputs: dict[str, object]) -> None:
    assert content_key(reordered(inputs)) == content_key(inputs)
    assert stage_key("stage", reordered(inputs)) == stage_key("stage", inputs)


@given(st.dictionaries(st.text(), VALUES), st.dictionaries(st.text(), VALUES))
def test_other_content_has_another_key(one: dict[str, object], other: dict[str, object]) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (content_key(one) == content_key(other)) == same


@given(st.dictionaries(st.text(), VALUES))
def test_a_stage_is_no_other_stage(inputs: dict[str, object]) -> None:
    assert stage_key("one", inputs) != stage_key("other", inputs)
