# SPDX-License-Identifier: Apache-2.0
"""A bias by the distance of a key, from a table of a few numbers for each head; and its gradient."""

import numpy as np
import pytest
from support.bits import assert_same_bits

import selfattn
from selfattn import reference

CASES = {  # leading, num_heads, num_kv_heads, q_len, kv_len, head_dim, reach, options
    "a square": ((2,), 4, 4, 50, 50, 16, 10, {}),
    "one query": ((2,), 4, 2, 1, 300, 16, 10, {}),
    "no leading dimension": ((), 6, 2, 70, 200, 24, 128, {"causal": "bottom_right"}),
    "beside others": (
        (3,), 4, 1, 9, 160, 8, 3,
        {"kv_lengths": [160, 5, 77], "causal": "bottom_right", "alibi_slopes": [1, 2, 3, 4], "softcap": 3.0},
    ),
    "one number": ((2,), 2, 2, 40, 40, 16, 0, {"window": (5, 3), "sinks": [0.0, 1.0]}),
    "two spans of keys": ((1,), 2, 1, 3, 1800, 8, 40, {}),
}  # fmt: skip


def inputs(rng, case, dtype):
    leading, num_heads, num_kv_heads, q_len, kv_len, head_dim, reach, options = CASES[case]
    shapes = [(*leading, num_heads, q_len, head_dim), *[(*leading, num_kv_heads, kv_len, head_dim)] * 2]
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    return arrays, {"relative_bias": rng.standard_normal((num_heads, 2 * reach + 1)), **options}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_specification(isa, rng, case, dtype):
    arrays, options = inputs(rng, case, dtype)
    out, lse = selfattn.attention(*arrays, **options, return_lse=True)
    exact = [array.astype(np.float64) for array in arrays]
    expected, expected_lse = reference.attention(*exact, **options, return_lse=True)
    bound = 5e-6 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(out, expected, atol=bound)
    np.testing.assert_allclose(lse, expected_lse, atol=bound)
    grad_out = rng.standard_normal(out.shape).astype(dtype)
    need = ("query", "key", "value", "relative_bias")
    ours = selfattn.attention_backward(grad_out, *arrays, out, lse, need=need, **options)
    theirs = reference.attention_backward(
        grad_out.astype(np.float64), *exact, expected, expected_lse, need=need, **options
    )
    for name, one, other in zip(need, ours, theirs, strict=True):
        assert one.shape == other.shape, name
        np.testing.assert_allclose(one, other, atol=bound * 10, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_bias_that_it_stands_for(isa, rng, case):
    arrays, options = inputs(rng, case, np.float32)
    if options.get("kv_lengths") is not None:
        return  # whose positions differ from item to item
    q_len, kv_len = arrays[0].shape[-2], arrays[1].shape[-2]
    reach = options["relative_bias"].shape[1] // 2
    distance = np.arange(kv_len) - (np.arange(q_len)[:, None] + kv_len - q_len)
    bias = options["relative_bias"][:, np.clip(distance, -reach, reach) + reach].astype(np.float32)
    expected = selfattn.attention(*arrays, **(options | {"relative_bias": None, "bias": bias}))
    assert_same_bits(selfattn.attention(*arrays, **options), expected)


def test_a_query_alone_and_a_packed_batch_give_the_same_bits(isa, rng):
    (query, key, value), options = inputs(rng, "a square", np.float32)
    table = options["relative_bias"]
    whole = selfattn.attention(query, key, value, relative_bias=table)
    for threads in (1, 3):
        assert_same_bits(
            selfattn.attention(query, key, value, relative_bias=table, num_threads=threads), whole
        )
    last = selfattn.attention(query[:, :, -1:], key, value, relative_bias=table)
    assert_same_bits(last, whole[:, :, -1:])
    rows = [array.swapaxes(1, 2).reshape(100, *array.shape[1::2]) for array in (query, key, value)]
    packed = selfattn.varlen_attention(*rows, [0, 50, 100], relative_bias=table)
    assert_same_bits(packed.reshape(2, 50, 4, 16).swapaxes(1, 2), whole)
    weights = selfattn.attention_weights(query, key, relative_bias=table)
    np.testing.assert_allclose(weights @ value, whole, atol=5e-6)
    chosen = selfattn.attention_weights(query, key, relative_bias=table, rows=[7, 49])
    assert_same_bits(chosen, weights[:, :, [7, 49]])


def test_the_gradient_has_the_same_bits_for_any_number_of_threads(rng):
    arrays, options = inputs(rng, "a square", np.float32)
    out, lse = selfattn.attention(*arrays, **options, return_lse=True)
    results = [
        selfattn.attention_backward(
            out, *arrays, out, lse, need=("relative_bias",), num_threads=n, **options
        )[0]
        for n in (1, 2, 5)
    ]
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@pytest.mark.parametrize(
    ("table", "error", "said"),
    [
        (np.zeros((4, 6)), ValueError, r"shape \(4, 6\).*\(num_heads=4, 2 \* reach \+ 1\)"),
        (np.zeros((3, 5)), ValueError, r"shape \(3, 5\)"),
        (np.zeros(5), ValueError, r"shape \(5,\)"),
        (np.full((4, 5), np.nan), ValueError, "not finite"),
        (np.zeros((4, 5), bool), TypeError, "real numbers"),
    ],
)
def test_a_bad_table_is_named(rng, table, error, said):
    arrays, _ = inputs(rng, "a square", np.float32)
    with pytest.raises(error, match=f"relative_bias.*{said}"):
        selfattn.attention(*arrays, relative_bias=table)
