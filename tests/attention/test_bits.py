# SPDX-License-Identifier: Apache-2.0
"""One answer everywhere: the same bits for any threads, batch, padding, strides and instruction set."""

import numpy as np
import pytest
from support.accuracy import DTYPES, assert_same_bits
from support.arrays import LAYOUTS, qkv
from support.bits import (
    HEADS,
    OPTIONS,
    TOGETHER,
    assert_all_the_same,
    both,
    on_every_isa_with_fma,
    with_masks,
)
from support.strategies import using

import selfattn

SIZES = [(1, 1, 8), (1, 300, 64), (17, 33, 24), (67, 193, 65), (130, 600, 64)]  # q_len, kv_len, dim
CAUSAL = (False, "top_left", "bottom_right")


def options_for(rng, q_len, kv_len, causal):
    mask = rng.random((q_len, kv_len)) < 0.9
    bias = rng.standard_normal((1, q_len, kv_len)).astype(np.float32)
    return {"mask": mask, "bias": bias, "causal": causal}


@pytest.mark.parametrize(("q_len", "kv_len", "dim"), SIZES)
@pytest.mark.parametrize("causal", CAUSAL)
def test_any_number_of_threads(isa, rng, q_len, kv_len, dim, causal):
    arrays = qkv(rng, batch=3, heads=4, kv_heads=2, q_len=q_len, kv_len=kv_len, dim=dim)
    options = options_for(rng, q_len, kv_len, causal)
    alone = both(*arrays, **options, num_threads=1)
    for num_threads in (2, 3, 8):
        assert_same_bits(both(*arrays, **options, num_threads=num_threads), alone)
    with selfattn.threads(2):
        assert_same_bits(both(*arrays, **options), alone)


@pytest.mark.parametrize(("q_len", "kv_len", "dim"), SIZES)
def test_an_item_alone_or_in_any_batch(isa, rng, q_len, kv_len, dim):
    query, key, value = qkv(rng, batch=5, heads=6, kv_heads=3, q_len=q_len, kv_len=kv_len, dim=dim)
    together = both(query, key, value)
    for item in range(5):
        assert_same_bits(both(query[item], key[item], value[item]), together[item])
    backwards = both(query[::-1], key[::-1], value[::-1])
    assert_same_bits(backwards[::-1], together)


@pytest.mark.parametrize("causal", [False, True])
def test_padded_or_cut(isa, rng, causal):
    lengths = np.array([1, 5, 16, 33, 64, 191, 192, 193, 260])
    padded = qkv(rng, batch=len(lengths), heads=2, q_len=260, dim=40)
    for array in padded[1:]:
        for item, length in enumerate(lengths):
            array[item, :, length:] = np.nan
    together = both(*padded, kv_lengths=lengths, causal=causal)
    for item, length in enumerate(lengths):
        cut = [array[item, :, :length] for array in padded]
        assert_same_bits(both(*cut, causal=causal), together[item, :, :length])


def test_masked_with_a_mask_or_with_lengths(isa, rng):
    query, key, value = qkv(rng, batch=3, q_len=20, kv_len=210, dim=24)
    lengths = np.array([1, 130, 210])
    mask = (np.arange(210) < lengths[:, None])[:, None, None]
    expected = both(query, key, value, kv_lengths=lengths)
    assert_same_bits(both(query, key, value, mask=mask), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(isa, rng, layout):
    query, key, value = qkv(rng, heads=4, kv_heads=2, q_len=70, kv_len=201, dim=40)
    expected = both(query, key, value, causal="bottom_right")
    lay = LAYOUTS[layout]
    assert_same_bits(both(lay(query), lay(key), lay(value), causal="bottom_right"), expected)


@pytest.mark.parametrize(("kv_len", "dim"), [(1, 8), (40, 24), (300, 64), (777, 65)])
def test_one_query_or_many(isa, rng, kv_len, dim):
    query, key, value = qkv(rng, heads=4, kv_heads=2, q_len=70, kv_len=kv_len, dim=dim)
    bias = rng.standard_normal((70, kv_len)).astype(np.float32)
    together = both(query, key, value, bias=bias)
    for first, last in ((0, 1), (33, 34), (69, 70), (5, 7), (10, 30)):
        some = slice(first, last)
        assert_same_bits(both(query[:, :, some], key, value, bias=bias[some]), together[:, :, some])


def test_a_decoded_token_equals_the_same_token_in_the_prompt(isa, rng):
    query, key, value = qkv(rng, heads=8, kv_heads=2, q_len=230, dim=64)
    prompt = both(query, key, value, causal=True)
    for row in (0, 1, 17, 191, 192, 229):
        step = both(
            query[:, :, row : row + 1], key[:, :, : row + 1], value[:, :, : row + 1], causal="bottom_right"
        )
        assert_same_bits(step, prompt[:, :, row : row + 1])


@pytest.mark.parametrize(("q_len", "kv_len", "dim"), SIZES)
def test_grouped_heads_equal_repeated_keys(isa, rng, q_len, kv_len, dim):
    query, key, value = qkv(rng, heads=6, kv_heads=2, q_len=q_len, kv_len=kv_len, dim=dim)
    repeated = both(query, key.repeat(3, axis=1), value.repeat(3, axis=1))
    assert_same_bits(both(query, key, value), repeated)


def test_the_same_call_again_and_again(isa, rng):
    arrays = qkv(rng, heads=3, q_len=50, kv_len=300, dim=48)
    first = both(*arrays)
    for _ in range(50):
        assert_same_bits(both(*arrays), first)


@pytest.mark.parametrize(("q_len", "kv_len", "dim"), [*SIZES, (3, 5, 1), (33, 400, 129), (5, 70, 512)])
@pytest.mark.parametrize("causal", CAUSAL)
def test_every_instruction_set_with_fma(rng, q_len, kv_len, dim, causal):
    arrays = qkv(rng, heads=4, kv_heads=2, q_len=q_len, kv_len=kv_len, dim=dim)
    options = options_for(rng, q_len, kv_len, causal)
    results = on_every_isa_with_fma(
        lambda: (both(*arrays, **options), selfattn.attention_weights(*arrays[:2], **options))
    )
    if len(results) < 2:
        pytest.skip(f"this machine has {selfattn.available_isas()} only: there is nothing to compare")
    assert_all_the_same(*results)


# ---- every option and dtype ----

VALUE_DIMS = (40, 32)  # with AVX-512 outputs lane by lane (float64: 5 vectors, others 2.5), and row by row


def inputs(rng, dtype, **sizes):
    return [array.astype(dtype) for array in qkv(rng, **HEADS, **sizes)]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_options_on_any_instruction_set_and_number_of_threads(rng, dtype, name):
    """Over more than one span of keys, and tasks enough for eight threads."""
    query, key, value = inputs(rng, dtype, q_len=37, kv_len=1801, dim=40, value_dim=33)
    options = with_masks(rng, OPTIONS[name], 37, 1801, dtype)

    def compute():
        results = [both(query, key, value, **options, num_threads=n) for n in (1, 2, 3, 8)]
        assert_all_the_same(*results)
        return results[0]

    assert_all_the_same(*on_every_isa_with_fma(compute))
    with using("baseline"):
        compute()


@pytest.mark.parametrize("value_dim", VALUE_DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_options_at_any_strides(isa, rng, layout, dtype, value_dim):
    query, key, value = inputs(rng, dtype, q_len=70, kv_len=201, dim=33, value_dim=value_dim)
    options = with_masks(rng, TOGETHER, 70, 201, dtype)
    expected = both(query, key, value, **options)
    lay = LAYOUTS[layout]
    options |= {"mask": lay(options["mask"][None]), "bias": lay(options["bias"])}
    assert_same_bits(both(lay(query), lay(key), lay(value), **options), expected)


@pytest.mark.parametrize("value_dim", VALUE_DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_a_decoded_token(isa, rng, name, dtype, value_dim):
    query, key, value = inputs(rng, dtype, q_len=230, dim=33, value_dim=value_dim)
    prompt = both(query, key, value, causal=True, **OPTIONS[name])
    for row in (0, 1, 62, 143, 144, 229):
        now, seen = np.s_[:, :, row : row + 1], np.s_[:, :, : row + 1]
        step = both(query[now], key[seen], value[seen], causal="bottom_right", **OPTIONS[name])
        assert_same_bits(step, prompt[now])


@pytest.mark.parametrize("value_dim", VALUE_DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_grouped_heads(isa, rng, name, dtype, value_dim):
    query, key, value = inputs(rng, dtype, q_len=67, kv_len=193, dim=33, value_dim=value_dim)
    repeated = both(query, key.repeat(3, axis=1), value.repeat(3, axis=1), **OPTIONS[name])
    assert_same_bits(both(query, key, value, **OPTIONS[name]), repeated)
    for head in range(6):
        one, options = slice(head, head + 1), dict(OPTIONS[name])
        options |= {k: options[k][one] for k in ("alibi_slopes", "sinks") if k in options}
        group = slice(head // 3, head // 3 + 1)
        alone = both(query[:, one], key[:, group], value[:, group], **options)
        assert_same_bits(alone, repeated[:, one])


@pytest.mark.parametrize("value_dim", VALUE_DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_an_item_alone_or_in_any_batch(isa, rng, name, dtype, value_dim):
    query, key, value = inputs(rng, dtype, batch=5, q_len=31, kv_len=193, dim=33, value_dim=value_dim)
    options = with_masks(rng, OPTIONS[name], 31, 193, dtype)
    together = both(query, key, value, **options)
    for item in range(5):
        assert_same_bits(both(query[item], key[item], value[item], **options), together[item])
    shuffled = [3, 1, 4, 0, 2, 2]
    assert_same_bits(both(query[shuffled], key[shuffled], value[shuffled], **options), together[shuffled])


# ---- what a rounding must not tell ----


def test_the_sign_of_a_zero_does_not_tell_who_the_neighbours_were(isa):
    """A sum may underflow to -0 in one block; alone or before blocks that the row does not see, it is 0."""
    query, key, value = (np.zeros((1, 1, 300, 1), np.float32) for _ in range(3))
    query[:], key[0, 0, 1], value[0, 0, :2, 0] = 1, 10, (-1e-45, -0.0)
    together = selfattn.attention(query, key, value, causal=True)
    alone = selfattn.attention(query[:, :, 1:2], key[:, :, :2], value[:, :, :2])
    assert_same_bits(together[:, :, 1:2], alone)
    assert not np.signbit(alone).any()


def test_weights_of_a_row_of_nan_do_not_depend_on_the_neighbours(isa, rng):
    query, key, _ = qkv(rng, q_len=3, dim=4)
    query[0, 0, 0] = np.nan
    weights = selfattn.attention_weights(query, key, causal=True)
    np.testing.assert_array_equal(np.isnan(weights[0, 0, 0]), [True, False, False])
    rows = [selfattn.attention_weights(query, key, causal=True, rows=[i]) for i in range(3)]
    np.testing.assert_array_equal(weights, np.concatenate(rows, axis=2))
