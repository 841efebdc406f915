"""JSON of study files: what goes in comes out, to the last bit, whichever way it is written."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import StorageError
from shoal.storage import _codec

KEYS = st.text(max_size=5) | st.sampled_from(["loss", "$", "$float", "$$x", '"', "\\", "é", "\x00"])
FLATS = st.dictionaries(KEYS, st.floats() | st.integers() | st.text(max_size=5), max_size=6)
DEEP = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@given(FLATS | st.dictionaries(KEYS, st.floats(), max_size=6) | DEEP)
def test_what_is_written_is_read(value: Any) -> None:
    text = _codec.encode(value, "it")
    json.loads(text, parse_constant=pytest.fail)  # strict JSON
    assert repr(_codec.decode(text)) == repr(value)  # so that NaN is NaN, and -0.0 is not 0.0


@given(st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False), max_size=6))
def test_metrics_are_written_as_json_writes_them(value: dict[str, float]) -> None:
    doubled = {f"${key}" if key.startswith("$") else key: number for key, number in value.items()}
    assert _codec.encode(value, "it") == json.dumps(doubled)


def test_what_is_no_data_is_refused() -> None:
    assert math.isinf(_codec.decode(_codec.encode({"a": math.inf}, "it"))["a"])
    with pytest.raises(StorageError, match=r"it must be JSON data .*, got set: convert it first"):
        _codec.encode({"a": {1}}, "it")
