# SPDX-License-Identifier: Apache-2.0
"""Partial states over disjoint keys, merged, against attention over all keys at once."""

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
from support.accuracy import assert_same_bits
from support.spec_arrays import qkv

from selfattn import merge_attention
from selfattn.reference import attention

INF = np.inf


def parts_of(query, key, value, *cuts, **options):
    """Attention over the keys between the cuts: the outputs and the lses."""
    ends = [0, *cuts, key.shape[2]]
    states = [
        attention(query, key[:, :, a:b], value[:, :, a:b], **options, return_lse=True)
        for a, b in itertools.pairwise(ends)
    ]
    return zip(*states, strict=True)


def test_two_parts_by_hand():
    outputs = [np.full((1, 1, 1), 4.0), np.full((1, 1, 1), 8.0)]
    lses = [np.full((1, 1), math.log(3)), np.full((1, 1), 0.0)]
    out, lse = merge_attention(outputs, lses)  # weights 3/4 and 1/4
    np.testing.assert_allclose(out, [[[5.0]]], rtol=1e-15)
    np.testing.assert_allclose(lse, [[math.log(4)]], rtol=1e-15)


@pytest.mark.parametrize("cuts", [(), (3,), (1, 2, 3, 4, 5, 6), (0, 0, 4, 7)], ids=str)
def test_parts_are_the_whole(cuts):
    query, key, value = qkv()
    out, lse = merge_attention(*parts_of(query, key, value, *cuts))
    whole, whole_lse = attention(query, key, value, return_lse=True)
    np.testing.assert_allclose(out, whole, rtol=1e-13)
    np.testing.assert_allclose(lse, whole_lse, rtol=1e-13)


def test_in_any_order_and_in_any_grouping():
    outputs, lses = map(list, parts_of(*qkv(), 2, 4))
    together = merge_attention(outputs, lses)
    backwards = merge_attention(outputs[::-1], lses[::-1])
    first, first_lse = merge_attention(outputs[:2], lses[:2])
    in_steps = merge_attention([first, outputs[2]], [first_lse, lses[2]])
    for other in (backwards, in_steps):
        for ours, theirs in zip(other, together, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-14, atol=1e-15)


def test_one_part_is_itself():
    state = attention(*qkv(dtype=np.float32), return_lse=True)
    for ours, theirs in zip(merge_attention(*([array] for array in state)), state, strict=True):
        assert_same_bits(ours, theirs)


@pytest.mark.parametrize("junk", [0.0, np.nan, INF])
def test_an_empty_part_adds_nothing_whatever_it_holds(junk):
    (out, *_), (lse, *_) = parts_of(*qkv(dtype=np.float32))
    empty, empty_lse = np.full_like(out, junk), np.full_like(lse, -INF)
    for order in (slice(None), slice(None, None, -1)):
        merged, merged_lse = merge_attention([out, empty][order], [lse, empty_lse][order])
        assert_same_bits(merged, out)
        assert_same_bits(merged_lse, lse)
    nothing, nothing_lse = merge_attention([empty, empty], [empty_lse, empty_lse])
    np.testing.assert_array_equal(nothing, 0)
    np.testing.assert_array_equal(nothing_lse, -INF)


def test_rows_are_empty_one_by_one():
    """Causal parts: the first queries see no key of the last part."""
    query, key, value = qkv(q_len=7)
    whole, whole_lse = attention(query, key, value, causal=True, return_lse=True)
    first = attention(query, key[:, :, :4], value[:, :, :4], causal="top_left", return_lse=True)
    mask = np.tri(7, dtype=bool)[:, 4:]
    last = attention(query, key[:, :, 4:], value[:, :, 4:], mask=mask, return_lse=True)
    out, lse = merge_attention(*zip(first, last, strict=True))
    np.testing.assert_allclose(out, whole, rtol=1e-13)
    np.testing.assert_allclose(lse, whole_lse, rtol=1e-13)


def test_a_sink_in_one_part_is_a_sink_of_the_whole():
    query, key, value = qkv()
    given = {"sinks": np.array([0.5, -1.0, 2.0, 0.0]), "return_lse": True}
    first = attention(query, key[:, :, :3], value[:, :, :3], **given)
    last = attention(query, key[:, :, 3:], value[:, :, 3:], return_lse=True)
    merged = merge_attention(*zip(first, last, strict=True))
    for ours, theirs in zip(merged, attention(query, key, value, **given), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-13)


def test_nan_stays_in_its_row():
    outputs, lses = map(list, parts_of(*qkv(), 3))
    clean, _ = merge_attention(outputs, lses)
    lses[1][0, 1, 2] = outputs[1][0, 1, 2] = np.nan
    out, lse = merge_attention(outputs, lses)
    hit = np.zeros((2, 4, 5), bool)
    hit[0, 1, 2] = True
    np.testing.assert_array_equal(np.isnan(lse), hit)
    np.testing.assert_array_equal(np.isnan(out), np.broadcast_to(hit[..., None], out.shape))
    np.testing.assert_array_equal(out[~hit], clean[~hit])


def test_lses_far_apart_and_far_from_zero():
    outputs = np.array([[[[1.0]]], [[[2.0]]], [[[3.0]]]])
    for offset in (-1e5, 0.0, 1e5):
        lses = np.array([[[0.0]], [[math.log(2)]], [[-1000.0]]]) + offset
        out, lse = merge_attention(outputs, lses)
        np.testing.assert_allclose(out, [[[5 / 3]]], rtol=1e-10)
        np.testing.assert_allclose(lse, [[math.log(3) + offset]], rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_results_have_the_dtypes_of_the_parts(dtype):
    query, key, value = qkv(dtype=np.float32)
    log_dtype = np.float64 if dtype is np.float64 else np.float32
    outputs, lses = parts_of(query, key, value, 3)
    outputs, lses = [o.astype(dtype) for o in outputs], [log.astype(log_dtype) for log in lses]
    out, lse = merge_attention(outputs, lses)
    assert (out.dtype, lse.dtype) == (dtype, log_dtype)
    exact, _ = merge_attention([o.astype(np.float64) for o in outputs], [x.astype(np.float64) for x in lses])
    assert_same_bits(out, exact.astype(dtype))  # rounded once


def test_half_precision_weights_do_not_overflow():
    out, lse = merge_attention(np.full((3, 1, 1, 1), 60000, np.float16), np.zeros((3, 1, 1), np.float32))
    assert out == 60000
    np.testing.assert_allclose(lse, math.log(3), rtol=1e-7)


def test_empty_shapes():
    out, lse = merge_attention([np.zeros((0, 2, 3, 4))] * 2, [np.zeros((0, 2, 3))] * 2)
    assert (out.shape, lse.shape) == ((0, 2, 3, 4), (0, 2, 3))


OUT, LSE = np.zeros((2, 3, 4), np.float32), np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("outputs", "lses", "error", "message"),
    [
        ([], [], ValueError, "0 outputs and 0 lses"),
        ([OUT, OUT], [LSE], ValueError, "2 outputs and 1 lses"),
        ([OUT[0, 0]], [LSE[0, 0]], ValueError, r"outputs\[0\] has shape \(4,\)"),
        (
            [OUT, OUT[:, :2]],
            [LSE, LSE],
            ValueError,
            r"outputs\[1\] has shape \(2, 2, 4\).* must be \(2, 3, 4\)",
        ),
        ([OUT, OUT], [LSE, LSE.T], ValueError, r"lses\[1\] has shape \(3, 2\).* must be \(2, 3\)"),
        (
            [OUT, OUT.astype(np.float64)],
            [LSE, LSE],
            TypeError,
            r"outputs\[1\] has dtype float64.* must be float32",
        ),
        ([OUT], [LSE.astype(np.float64)], TypeError, r"lses\[0\] has dtype float64.* must be float32"),
        ([OUT.astype(int)], [LSE], TypeError, r"outputs\[0\] has dtype int64"),
        ([[1.0]], [LSE], TypeError, r"outputs\[0\] is a list"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(outputs, lses, error, message):
    with pytest.raises(error, match=message):
        merge_attention(outputs, lses)
