# SPDX-License-Identifier: Apache-2.0
"""Properties of the operator, on problems that hypothesis draws; HYPOTHESIS_PROFILE=night draws many more."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.accuracy import assert_as_exact_as_numpy, assert_same_bits, check_attention, exactly, widened
from support.forms import FORMS
from support.strategies import DTYPES, ISAS, leading_shapes, problems, ragged_problems, using

import selfattn
from selfattn import reference

FUSED = [isa for isa in selfattn.available_isas() if isa != "baseline"] or ["baseline"]  # one answer for all
WIDE = tuple(dtype for dtype in DTYPES if dtype.itemsize >= 4)


def reference_of(function, problem, *arrays, **more):
    """What `function` of the reference gives in the operator's own arithmetic, and in a wider one."""
    options = problem.options | more
    return function(*arrays, **options), exactly(function, *arrays, **options)


def assert_all_as_exact_as_numpy(actual, naive, exact):
    for ours, same, wide in zip(actual, naive, exact, strict=True):
        assert_as_exact_as_numpy(ours, same.astype(ours.dtype), wide)


@given(problems(), ISAS, st.integers(1, 3))
def test_every_option_together_is_as_exact_as_numpy(problem, isa, num_threads):
    with using(isa):
        check_attention(*problem.arrays, **problem.options, num_threads=num_threads)


@given(problems(), st.sampled_from(FUSED), st.sampled_from(FUSED), st.integers(1, 4))
def test_the_bits_do_not_depend_on_strides_threads_or_instruction_set(problem, isa, other, num_threads):
    options = {
        name: np.ascontiguousarray(x) if name in ("mask", "bias") else x
        for name, x in problem.options.items()
    }
    with using(isa):
        plain = selfattn.attention(*map(np.ascontiguousarray, problem.arrays), **options, return_lse=True)
    with using(other):
        lying = selfattn.attention(
            *problem.arrays, **problem.options, num_threads=num_threads, return_lse=True
        )
    for ours, expected in zip(lying, plain, strict=True):
        assert_same_bits(ours, expected)


@given(leading_shapes(), st.sampled_from(DTYPES), st.integers(0, 2**32 - 1))
def test_leading_dimensions_broadcast(leading, dtype, seed):
    rng = np.random.default_rng(seed)
    whole = np.broadcast_shapes(*leading)
    tails = (4, 3, 8), (2, 5, 8), (2, 5, 6), (4, 3, 5)
    query, key, value, bias = (
        rng.standard_normal((*lead, *tail)).astype(dtype) for lead, tail in zip(leading, tails, strict=True)
    )
    query = np.broadcast_to(query, (*whole, *tails[0]))  # neither a value nor a bias makes more weights
    repeated = [
        np.broadcast_to(array, (*whole, *tail)).copy()
        for array, tail in zip((query, key, value, bias), tails, strict=True)
    ]
    options = {"kv_lengths": rng.integers(0, 6, whole[0])} if whole else {}
    for function, few in (
        (selfattn.attention, 3),
        (selfattn.attention_weights, 2),
        (selfattn.attention_column_sums, 2),
    ):
        result = function(*(query, key, value)[:few], bias=bias, **options)
        assert_same_bits(result, function(*repeated[:few], bias=repeated[3], **options))


@given(problems())
def test_weights_are_as_exact_as_numpy_and_sum_to_what_the_sink_leaves(problem):
    query, key, _ = problem.arrays
    weights = selfattn.attention_weights(query, key, **problem.options)
    assert weights.dtype == query.dtype
    naive, exact = reference_of(reference.attention_weights, problem, query, key)
    assert_all_as_exact_as_numpy([weights], [naive], [exact])
    _, lse = selfattn.attention(*problem.arrays, **problem.options, return_lse=True)
    sinks = problem.options.get("sinks", np.full(query.shape[1], -np.inf))
    with np.errstate(invalid="ignore"):
        left = np.where(lse == -np.inf, 0, -np.expm1(sinks[:, None] - lse))
    sums = weights.astype(np.float64).sum(axis=-1)
    np.testing.assert_allclose(sums, left, rtol=0, atol=8 * _precision(query.dtype))


def _precision(dtype):
    """The distance from 1 to the next number."""
    return 2.0 ** -{"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}[dtype.name]


@given(problems(), st.data())
def test_chosen_rows_are_the_rows_of_all(problem, data):
    query, key, _ = problem.arrays
    weights = selfattn.attention_weights(query, key, **problem.options)
    q_len = query.shape[2]
    rows = data.draw(st.lists(st.integers(-q_len, q_len - 1), max_size=5)) if q_len else []
    chosen = selfattn.attention_weights(query, key, **problem.options, rows=rows)
    assert_same_bits(chosen, weights[:, :, np.array(rows, int)])


@given(problems())
def test_column_sums_are_the_sums_of_the_weights(problem):
    """To the last bit: of the arithmetic's dtype, added in float64 in the queries' order, rounded once."""
    query, key, _ = problem.arrays
    sums = selfattn.attention_column_sums(query, key, **problem.options)
    assert sums.dtype == (np.float64 if query.dtype == np.float64 else np.float32)
    options = {name: widened(x, sums.dtype) for name, x in problem.options.items()}
    weights = selfattn.attention_weights(query.astype(sums.dtype), key.astype(sums.dtype), **options)
    total = np.zeros(sums.shape)
    for row in range(query.shape[2]):
        total += weights[:, :, row]
    assert_same_bits(sums, total.astype(sums.dtype))
    naive, exact = reference_of(reference.attention_column_sums, problem, query, key)
    assert_all_as_exact_as_numpy([sums], [naive], [exact])


@given(problems(positions=False), st.randoms(use_true_random=False))
def test_the_order_of_the_keys_does_not_matter(problem, random):
    kv_len = problem.key.shape[2]
    order = random.sample(range(kv_len), kv_len)
    key, value = problem.key[:, :, order], problem.value[:, :, order]
    options = problem.with_masks(np.s_[..., order])
    shuffled = selfattn.attention(problem.query, key, value, **options, return_lse=True)
    expected = reference_of(reference.attention, problem, *problem.arrays, return_lse=True)
    assert_all_as_exact_as_numpy(shuffled, *expected)


@given(problems(dtypes=WIDE, positions=False, sinks=False), st.data())
def test_parts_of_the_keys_merge_to_the_whole(problem, data):
    kv_len = problem.key.shape[2]
    cuts = sorted(data.draw(st.lists(st.integers(0, kv_len), max_size=3)))
    parts = []
    for part in map(slice, [0, *cuts], [*cuts, kv_len]):
        options = {
            name: np.broadcast_to(option, problem.scores)[..., part] if name in ("mask", "bias") else option
            for name, option in problem.options.items()
        }
        key, value = problem.key[:, :, part], problem.value[:, :, part]
        parts.append(selfattn.attention(problem.query, key, value, **options, return_lse=True))
    merged = selfattn.merge_attention(*zip(*parts, strict=True))
    expected = reference_of(reference.attention, problem, *problem.arrays, return_lse=True)
    assert_all_as_exact_as_numpy(merged, *expected)


@given(ragged_problems(), ISAS, st.integers(1, 9))
def test_padded_packed_cached_and_paged_are_one(ragged, isa, page_size):
    with using(isa):
        check_forms(*ragged, page_size)


def check_forms(problem, lengths, page_size):
    results = []
    for name, form in FORMS.items():
        more = {"page_size": page_size} if name == "paged" else {}
        results.append(form(*problem.arrays, lengths, **problem.options, **more))
    for b, length in enumerate(lengths):
        options = problem.with_masks(np.s_[b, ..., :length])
        key, value = problem.key[b, :, :length], problem.value[b, :, :length]
        alone = selfattn.attention(problem.query[b], key, value, **options, return_lse=True)
        for result in results:
            for together, single in zip(result, alone, strict=True):
                assert_same_bits(together[b], single)


@given(ragged_problems(self_attention=True))
def test_sentences_padded_or_packed_are_one(ragged):
    """Queries and keys are of the same words: the queries are ragged too, and causal is True."""
    problem, lengths = ragged
    out, lse = selfattn.attention(*problem.arrays, kv_lengths=lengths, **problem.options, return_lse=True)
    real = [array.swapaxes(1, 2)[np.arange(array.shape[2]) < lengths[:, None]] for array in problem.arrays]
    packed = selfattn.varlen_attention(
        *real, np.append(0, np.cumsum(lengths)), **problem.options, return_lse=True
    )
    rows = np.arange(out.shape[2]) < lengths[:, None]  # (batch, q_len)
    assert_same_bits(packed[0], out.swapaxes(1, 2)[rows])
    assert_same_bits(packed[1], lse.swapaxes(1, 2)[rows].T)


@given(problems(positions=False), st.data())
def test_a_token_decoded_over_a_cache_equals_its_row_in_the_prompt(problem, data):
    """Self-attention, causal: each step appends a token and attends with its query."""
    batch, num_heads, q_len, kv_len = problem.scores
    length = min(q_len, kv_len)
    window = data.draw(st.sampled_from((None, (0, 0), (3, None), (16, 0))))
    options = {
        "window": window,
        "sinks": np.linspace(-1, 1, num_heads),
        "softcap": problem.options.get("softcap"),
    }
    query, key, value = (array[:, :, :length] for array in problem.arrays)
    out, lse = selfattn.attention(query, key, value, causal=True, **options, return_lse=True)
    sizes = {"value_dim": value.shape[-1], "capacity": max(length, 1), "dtype": key.dtype}
    cache = selfattn.KVCache(batch, key.shape[1], key.shape[3], **sizes)
    prompt = data.draw(st.integers(0, length))
    cache.append(key[:, :, :prompt], value[:, :, :prompt])
    for token in range(prompt, length):
        step = slice(token, token + 1)
        cache.append(key[:, :, step], value[:, :, step])
        decoded = cache.attention(query[:, :, step], **options, return_lse=True)
        assert_same_bits(decoded[0], out[:, :, step])
        assert_same_bits(decoded[1], lse[:, :, step])
