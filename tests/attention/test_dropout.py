# SPDX-License-Identifier: Apache-2.0
"""Dropout: which weights stay is a function of the seed and of their place, and of nothing else."""

import itertools

import numpy as np
import pytest
from support.accuracy import DTYPES, assert_same_bits, check_attention
from support.arrays import qkv
from support.attention_gradients import assert_is_gradient, check_backward, grad_like_out

import selfattn
from selfattn import reference
from selfattn.reference.dropout import dropout_factors, philox4x64

SEEDS = (0, 1, 2**32 + 5, 2**63 + 12345, 2**64 - 1)


def numpy_block(counter, seed):
    """The four words of numpy.random.Philox at this counter; NumPy adds 1 to it before the first block."""
    before = sum(word << (64 * i) for i, word in enumerate(counter)) - 1
    words = [(before >> (64 * i)) % 2**64 for i in range(4)]
    generator = np.random.Philox(counter=np.array(words, np.uint64), key=np.array([seed, 0], np.uint64))
    return generator.random_raw(4)


def kept(seed, dropout, *, batch=1, heads=1, q_len=1, kv_len=1, dtype=np.float32, **options):
    """What attention multiplies equal weights by: the values are the rows of an identity matrix."""
    query = np.zeros((batch, heads, q_len, 1), dtype)
    value = np.broadcast_to(np.eye(kv_len, dtype=dtype), (batch, heads, kv_len, kv_len))
    key = np.zeros((batch, heads, kv_len, 1), dtype)
    return selfattn.attention(query, key, value, dropout=dropout, seed=seed, **options) * kv_len


# ---- the stream ----


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("counter", [(0, 0, 0, 0), (1, 0, 0, 0), (3, 2, 1, 7), (2**40, 2**64 - 1, 5, 2**63)])
def test_the_reference_generator_is_that_of_numpy(seed, counter):
    np.testing.assert_array_equal(philox4x64(counter, seed), numpy_block(counter, seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_numbers_of_the_weights_are_those_of_numpy(seed):
    factors = dropout_factors((2, 3, 4, 21), 0.25, seed, np.float64)
    for b, h, i, j in np.ndindex(factors.shape):
        words = numpy_block((j // 8, i, h, b), seed)
        number = int(words[j % 8 // 2]) >> (32 * (j % 2)) & 0xFFFFFFFF
        assert factors[b, h, i, j] == (1 / 0.75 if number >= 2**30 else 0)


@pytest.mark.parametrize("dropout", [1e-10, 0.1, 0.25, 0.5, 0.9, 0.999, 1 - 2**-40])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_kernels_drop_what_the_reference_drops(isa, seed, dropout):
    sizes = {"batch": 3, "heads": 2, "q_len": 19, "kv_len": 203}
    expected = dropout_factors((3, 2, 19, 203), dropout, seed, np.float32)
    actual = kept(seed, dropout, **sizes)
    np.testing.assert_array_equal(actual == 0, expected == 0)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_the_counter_of_an_item_is_its_flattened_leading_index(isa):
    """And that of a broadcast one its place in the result."""
    query, key = np.zeros((3, 1, 2, 5, 1), np.float32), np.zeros((4, 1, 17, 1), np.float32)
    out = selfattn.attention(query, key, np.eye(17, dtype=np.float32)[None], dropout=0.4, seed=3)
    expected = dropout_factors((12, 2, 5, 17), 0.4, 3, np.float32).reshape(3, 4, 2, 5, 17)
    np.testing.assert_allclose(out * 17, expected, rtol=1e-6)


# ---- what it does ----


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_the_share_that_is_dropped(dropout):
    """Of 10^6 weights, within four standard deviations."""
    factors = kept(11, dropout, batch=4, heads=5, q_len=50, kv_len=1000)
    share = np.mean(factors == 0)
    assert abs(share - dropout) < 4 * np.sqrt(dropout * (1 - dropout) / factors.size)
    assert set(np.unique(factors)) == {0, *np.unique(factors[factors != 0])}
    np.testing.assert_allclose(factors[factors != 0], 1 / (1 - dropout), rtol=1e-5)


def test_the_expectation_is_attention(rng):
    query, key, value = qkv(rng, batch=1, q_len=3, kv_len=40)
    outs = [selfattn.attention(query, key, value, dropout=0.3, seed=seed) for seed in range(3000)]
    error = np.mean(outs, axis=0, dtype=np.float64) - selfattn.attention(query, key, value)
    deviation = np.std(outs, axis=0, dtype=np.float64) / np.sqrt(len(outs))
    assert np.abs(error / deviation).max() < 5
    assert np.sqrt(np.mean((error / deviation) ** 2)) < 1.3


@pytest.mark.parametrize("causal", [False, "bottom_right"])
def test_nan_at_a_key_that_is_seen_reaches_its_rows_dropped_or_not(isa, rng, causal):
    """As in the reference: 0 * NaN."""
    query, key, value = qkv(rng, q_len=5, kv_len=9, dim=4)
    options = {"causal": causal, "dropout": 0.5, "seed": 1}
    for j, array in itertools.product(range(9), (key, value)):
        spoiled = array.copy()
        spoiled[:, :, j] = np.nan
        arrays = (query, spoiled, value) if array is key else (query, key, spoiled)
        expected = np.isnan(reference.attention(*arrays, **options))
        np.testing.assert_array_equal(np.isnan(selfattn.attention(*arrays, **options)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["mask", "bias"])
def test_nan_at_a_key_that_is_masked_reaches_nothing(isa, rng, name, dtype):
    query, key, value = (x.astype(dtype) for x in qkv(rng, q_len=40, kv_len=60, dim=4))
    seen = np.arange(60) % 7 != 3
    mask = {"mask": seen, "bias": np.where(seen, 0, -np.inf).astype(dtype)}[name]
    options = {name: mask, "dropout": 0.5, "seed": 1}
    expected = selfattn.attention(query, key, value, **options)
    assert np.isfinite(expected.astype(np.float64)).all()
    key[:, :, ~seen], value[:, :, ~seen] = np.nan, np.inf
    assert_same_bits(selfattn.attention(query, key, value, **options), expected)


@pytest.mark.parametrize("axis", range(4))
def test_every_index_has_numbers_of_its_own(axis):
    factors = kept(5, 0.5, batch=12, heads=12, q_len=12, kv_len=12)
    for one, other in itertools.combinations(np.moveaxis(factors != 0, axis, 0), 2):
        assert 0.4 < np.mean(one == other) < 0.6


def test_seeds_differ():
    first, *others = (kept(seed, 0.5, q_len=50, kv_len=50) != 0 for seed in range(20))
    assert all(0.45 < np.mean(first == other) < 0.55 for other in others)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, "top_left", "bottom_right"])
def test_against_the_reference(isa, rng, dtype, causal):
    arrays = [x.astype(dtype) for x in qkv(rng, heads=6, kv_heads=2, q_len=37, kv_len=300, value_dim=20)]
    options = {"window": (100, 20), "softcap": 2.0, "sinks": np.linspace(-1, 1, 6), "causal": causal}
    check_attention(*arrays, dropout=0.2, seed=4)
    check_attention(*arrays, dropout=0.2, seed=4, kv_lengths=np.array([300, 41]), **options)


def test_the_lse_knows_no_dropout(isa, rng):
    arrays, sinks = qkv(rng, q_len=37, kv_len=300), {"sinks": [0.0, 1.0]}
    lse = selfattn.attention(*arrays, **sinks, return_lse=True)[1]
    assert_same_bits(selfattn.attention(*arrays, **sinks, dropout=0.5, seed=1, return_lse=True)[1], lse)


def test_no_dropout_needs_no_seed_and_takes_one(rng):
    arrays = qkv(rng, q_len=37, kv_len=300)
    expected = selfattn.attention(*arrays)
    for options in ({"dropout": 0.0}, {"dropout": 0}, {"dropout": 0.0, "seed": 3}, {"seed": 3}):
        assert_same_bits(selfattn.attention(*arrays, **options), expected)
    same = selfattn.attention(*arrays, dropout=1e-12, seed=0)  # no number of 32 bits is dropped
    assert_same_bits(same, expected)


def test_everything_can_be_dropped(isa, rng):
    arrays = qkv(rng, q_len=9, kv_len=20)
    out, lse = selfattn.attention(*arrays, dropout=1 - 2**-40, seed=0, return_lse=True)
    assert not out.any()
    assert_same_bits(lse, selfattn.attention(*arrays, return_lse=True)[1])


# ---- one answer ----


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_dropped_does_not_depend_on_other_options(isa, seed):
    """Nor on threads, lengths and masks: those make some weights 0 and the others larger."""
    sizes = {"batch": 2, "heads": 2, "q_len": 21, "kv_len": 50}
    expected = kept(seed, 0.4, **sizes) != 0
    i, j = np.indices((21, 50))
    some = kept(seed, 0.4, **sizes, causal="top_left") != 0
    np.testing.assert_array_equal(some, expected & (j <= i))
    some = kept(seed, 0.4, **sizes, kv_lengths=[50, 13], window=(30, 7), num_threads=3) != 0
    lengths = np.array([50, 13]).reshape(2, 1, 1, 1)
    seen = (j < lengths) & (j >= i + 29 - 30) & (j <= i + 29 + 7)
    np.testing.assert_array_equal(some, expected & seen)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_heads_are_dropped_by_query_head(isa, rng, kv_heads):
    query, key, value = qkv(rng, heads=4, kv_heads=kv_heads, q_len=37, kv_len=70)
    repeated = [np.repeat(array, 4 // kv_heads, axis=1) for array in (key, value)]
    dropped = {"dropout": 0.3, "seed": 9}
    expected = selfattn.attention(query, *repeated, **dropped)
    assert_same_bits(selfattn.attention(query, key, value, **dropped), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_is_padded_item_by_item(isa, rng, dtype):
    lengths = (9, 0, 30, 1, 17)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    arrays = [rng.standard_normal((57, heads, 12)).astype(dtype) for heads in (4, 2, 2)]
    options = {"dropout": 0.3, "seed": 2**60 + 1, "causal": True}
    out, lse = selfattn.varlen_attention(*arrays, bounds, **options, return_lse=True)
    padded = [np.zeros((5, 30, *array.shape[1:]), dtype) for array in arrays]
    for b, (begin, end) in enumerate(itertools.pairwise(bounds)):
        for room, array in zip(padded, arrays, strict=True):
            room[b, : end - begin] = array[begin:end]
    heads_first = [array.swapaxes(1, 2) for array in padded]
    whole, whole_lse = selfattn.attention(*heads_first, **options, kv_lengths=lengths, return_lse=True)
    real = np.arange(30) < np.array(lengths)[:, None]
    assert_same_bits(out, whole.swapaxes(1, 2)[real])
    assert_same_bits(lse.T, whole_lse.swapaxes(1, 2)[real])
    exact = reference.varlen_attention(*(array.astype(np.float64) for array in arrays), bounds, **options)
    np.testing.assert_allclose(
        out.astype(np.float64), exact, rtol=0, atol=3e-2 if out.itemsize == 2 else 1e-5
    )


# ---- its gradients ----


def test_the_gradients_are_those_of_the_weights_that_stayed(isa, rng):
    """Central differences of the kernels themselves, with the same seed."""
    query, key, value = (
        x.astype(np.float64) for x in qkv(rng, heads=2, q_len=4, kv_len=11, dim=3, value_dim=2)
    )
    options = {"dropout": 0.4, "seed": 77, "causal": "bottom_right"}
    out, lse = selfattn.attention(query, key, value, **options, return_lse=True)
    grad_out = rng.standard_normal(out.shape)

    def loss(query, key, value):
        return float((grad_out * selfattn.attention(query, key, value, **options)).sum())

    grads = selfattn.attention_backward(grad_out, query, key, value, out, lse, **options)
    assert_is_gradient(loss, {"query": query, "key": key, "value": value}, grads)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradients_against_the_reference(isa, rng, dtype):
    arrays = [x.astype(dtype) for x in qkv(rng, heads=6, kv_heads=2, q_len=150, kv_len=300, value_dim=20)]
    check_backward(grad_like_out(rng, *arrays), *arrays, dropout=0.2, seed=4, causal="bottom_right")


# ---- what is refused ----


@pytest.mark.parametrize("form", ["attention", "varlen_attention"])
def test_arguments(rng, form):
    arrays = qkv(rng, batch=1, heads=1, q_len=3)
    if form == "varlen_attention":
        arrays = (*(array[0].swapaxes(0, 1) for array in arrays), [0, 3])
    call = getattr(selfattn, form)
    for dropout in (-0.1, 1.0, 1.5, 1):
        with pytest.raises(ValueError, match=f"dropout={dropout} must be at least 0 and less than 1"):
            call(*arrays, dropout=dropout, seed=0)
    with pytest.raises(ValueError, match="dropout=nan must be finite"):
        call(*arrays, dropout=np.nan, seed=0)
    for dropout in ("0.5", None, True, [0.5], np.zeros(2)):
        with pytest.raises(TypeError, match=r"dropout=.* must be a number"):
            call(*arrays, dropout=dropout, seed=0)
    with pytest.raises(ValueError, match=r"dropout=0.5 needs seed="):
        call(*arrays, dropout=0.5)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=rf"seed={seed} must be between 0 and 2\*\*64 - 1"):
            call(*arrays, dropout=0.5, seed=seed)
        with pytest.raises(ValueError, match=f"seed={seed}"):
            call(*arrays, seed=seed)
    for seed in (1.0, "1", True, np.random.default_rng(0)):
        with pytest.raises(TypeError, match=r"seed=.* must be an integer"):
            call(*arrays, dropout=0.5, seed=seed)
    for seed in (np.int64(5), np.uint64(5)):
        assert_same_bits(
            call(*arrays, dropout=0.5, seed=seed), call(*arrays, dropout=np.float32(0.5), seed=5)
        )
