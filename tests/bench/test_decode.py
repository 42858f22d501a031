# SPDX-License-Identifier: Apache-2.0
"""The decode suite: its specification, what it counts, and that no call finds the last one's cache warm."""

import dataclasses

import numpy as np
import pytest

import selfattn
from selfattn.bench import decode, machine, timing
from selfattn.bench.decode import decode_workload

SHAPE = "2x6x2x9x8"
DTYPES = ["float32", "bfloat16", "int8"]


def skip_without(dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")


def test_bytes_are_those_of_keys_and_values_once() -> None:
    case = decode_workload("1x32x8x4096x128", 4, "float32")
    assert case.bytes == 2 * 8 * 4096 * 128 * 4
    assert dataclasses.replace(case, dtype="bfloat16").bytes * 2 == case.bytes
    assert dataclasses.replace(case, dtype="int8").bytes * 4 == case.bytes
    assert case.flops == 2 * 2 * 32 * 4 * 4096 * 128


def test_the_copies_are_more_than_a_processor_cache_holds() -> None:
    case = decode_workload("1x32x8x4096x128", 1, "float32")
    assert case.copies * case.bytes >= machine.READ_BYTES > (case.copies - 1) * case.bytes
    assert decode_workload(SHAPE, 1, "int8").copies == decode.MAX_COPIES


def test_heads_that_are_no_multiple() -> None:
    with pytest.raises(ValueError, match="6 heads are no multiple of 4 kv_heads"):
        decode_workload("1x6x4x9x8", 1, "float32")


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_expected_values_are_grouped_attention_to_every_key(dtype: str) -> None:
    skip_without(dtype)
    case = decode_workload(SHAPE, 3, dtype)
    query, key, value = (x.astype(np.float64) for x in case.arrays)
    if dtype == "int8":
        key, value = decode.quantised(key), decode.quantised(value)
    key, value = (np.repeat(x, 3, axis=1) for x in (key, value))
    weights = np.exp(query @ key.swapaxes(-1, -2) / np.sqrt(8))
    right = weights @ value / weights.sum(-1, keepdims=True)
    assert case.error(right) < 1e-6
    assert case.error(right.reshape(2, 2, 9, 8)) == case.error(right)
    assert case.error(right + 0.05) > case.tolerance
    assert case.error(right[:1]) == np.inf


def test_int8_keeps_127_steps_of_each_token() -> None:
    x = np.array([[127.0, -63.6, 0.4], [1.0, 2.0, -2.54]], np.float32)
    kept = decode.quantised(x)
    np.testing.assert_allclose(kept, [[127, -64, 0], [1, 2, -2.54]], rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_selfattn_is_right_in_every_turn(dtype: str) -> None:
    skip_without(dtype)
    case = decode_workload(SHAPE, 2, dtype)
    for build in decode.selfattn_variants(case, 1).values():
        call = build()
        for _ in range(case.copies + 1):
            assert timing.verified_error(call, case) <= case.tolerance


def test_an_int8_cache_that_forgets_its_scales_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    case = decode_workload(SHAPE, 1, "int8")
    append = selfattn.KVCache.append
    monkeypatch.setattr(selfattn.KVCache, "append", lambda self, key, value: append(self, key, value * 1.01))
    (build,) = decode.selfattn_variants(case, 1).values()
    with pytest.raises(timing.WrongResultError, match="above the tolerance"):
        timing.verified_error(build(), case)


def test_numpy_is_right_and_has_float32_alone() -> None:
    pytest.importorskip("threadpoolctl")
    case = decode_workload(SHAPE, 2, "float32")
    (build,) = decode.numpy_variants(case, 1).values()
    assert timing.verified_error(build(), case) <= case.tolerance
    with pytest.raises(decode.UnsupportedError):
        decode.numpy_variants(decode_workload(SHAPE, 2, "int8"), 1)


def test_calls_take_turns() -> None:
    call = decode.in_turn([lambda number=number: number for number in range(3)])
    assert [call() for _ in range(5)] == [0, 1, 2, 0, 1]
