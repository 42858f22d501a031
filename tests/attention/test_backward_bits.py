# SPDX-License-Identifier: Apache-2.0
"""One answer: gradients of the same bits on any threads, in any batch, packed, on AVX2 and on AVX-512."""

import itertools

import numpy as np
import pytest
from support.accuracy import DTYPES, assert_same_bits
from support.arrays import qkv
from support.attention_gradients import QKV, backward, grad_like_out, needed
from support.bits import HEADS, OPTIONS, assert_all_the_same, on_every_isa_with_fma, with_masks
from support.strategies import using

import selfattn

LENGTHS = np.array([211, 1, 144, 0, 290])
SIZES = {"batch": 5, "q_len": 150, "kv_len": 290, "dim": 33, "value_dim": 20}
THREADS = (1, 2, 3, 8)
DROPOUT = {"dropout": 0.25, "seed": 7}
OPTIONS = OPTIONS | {"dropout": DROPOUT, "all and dropout": OPTIONS["together"] | DROPOUT}


def inputs(rng, dtype=np.float32, **sizes):
    """grad_out, query, key, value."""
    arrays = [array.astype(dtype) for array in qkv(rng, **HEADS, **(SIZES | sizes))]
    return grad_like_out(rng, *arrays), *arrays


def every(arrays, options, **more):
    """All gradients that there are, in a tuple; numbers, for equal NaN would say nothing."""
    grads = tuple(backward(*arrays, **options, **more).values())
    assert all(np.isfinite(grad.astype(np.float64)).all() for grad in grads)
    return grads


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_any_number_of_threads_and_any_instruction_set(rng, name, dtype):
    arrays = inputs(rng, dtype)
    options = with_masks(rng, OPTIONS[name], 150, 290, dtype) | {"kv_lengths": LENGTHS}

    def compute():
        results = [every(arrays, options, num_threads=n) for n in THREADS]
        assert_all_the_same(*results)
        return results[0]

    assert_all_the_same(*on_every_isa_with_fma(compute))
    with using("baseline"):
        compute()


@pytest.mark.parametrize("groups", [(3, 1), (10, 2), (130, 1)], ids=str)
def test_a_bias_that_all_heads_share_where_a_group_lies_in_two_tiles(rng, groups):
    """64 rows of queries and heads are a tile: 64 is no multiple of the group."""
    heads, kv_heads = groups
    sizes = {"batch": 2, "heads": heads, "kv_heads": kv_heads, "q_len": 100, "kv_len": 300, "dim": 4}
    arrays = [array.astype(np.float64) for array in qkv(rng, **sizes)]
    arrays = [grad_like_out(rng, *arrays), *arrays]
    options = {"bias": rng.standard_normal((100, 300)), "need": ("bias",)}
    assert_all_the_same(*[every(arrays, options, num_threads=n) for n in (1, *[4] * 20)])


@pytest.mark.parametrize("lengths", [(1, 700), (700, 1), (5, 5), (64, 64), (300, 17), (513, 513)], ids=str)
def test_lengths(rng, lengths):
    arrays = inputs(rng, batch=2, q_len=lengths[0], kv_len=lengths[1])

    def compute():
        results = [every(arrays, {"causal": "bottom_right"}, num_threads=n) for n in THREADS]
        assert_all_the_same(*results)
        return results[0]

    assert_all_the_same(*on_every_isa_with_fma(compute))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in OPTIONS if "dropout" not in name])
def test_an_item_alone(isa, rng, name, dtype):
    """Without dropout, for which the item's index counts."""
    arrays = inputs(rng, dtype)
    options = with_masks(rng, OPTIONS[name], 150, 290, dtype)
    del options["bias"]
    together = every(arrays, options, need=QKV, kv_lengths=LENGTHS)
    for item, length in enumerate(LENGTHS):
        one = [array[item : item + 1] for array in arrays]
        alone = every(one, options, need=QKV, kv_lengths=[length])
        assert_all_the_same(alone, tuple(grad[item : item + 1] for grad in together))
        assert_all_the_same(
            every([array[item] for array in arrays], options, need=QKV, kv_lengths=[length]),
            tuple(grad[item] for grad in together),
        )
    reverse = every([array[::-1] for array in arrays], options, need=QKV, kv_lengths=LENGTHS[::-1])
    assert_all_the_same(tuple(grad[::-1] for grad in reverse), together)


@pytest.mark.parametrize("name", OPTIONS)
def test_keys_beyond_the_lengths_might_not_be_there(isa, rng, name):
    arrays = grad_out, query, key, value = inputs(rng, batch=2)
    options = {"causal": "top_left"} | OPTIONS[name]
    whole = every(arrays, options, need=QKV, kv_lengths=[200, 200])
    cut = every((grad_out, query, key[:, :, :200], value[:, :, :200]), options, need=QKV)
    assert_same_bits(whole[0], cut[0])
    for padded, grad in zip(whole[1:], cut[1:], strict=True):
        assert_same_bits(padded[:, :, :200], grad)
        assert not padded[:, :, 200:].any()


# ---- packed sequences ----

Q_LENS, KV_LENS = (150, 0, 1, 33, 70), (212, 5, 0, 33, 41)


def packed(rng, dtype):
    """grad_out, query, key, value one sequence after another, and the bounds of both."""
    cu_q, cu_kv = (np.concatenate([[0], np.cumsum(lens)]) for lens in (Q_LENS, KV_LENS))
    shapes = (cu_q[-1], 6, 20), (cu_q[-1], 6, 33), (cu_kv[-1], 2, 33), (cu_kv[-1], 2, 20)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes], cu_q, cu_kv


def backward_packed(arrays, cu_q, cu_kv, *, need=QKV, **options):
    out, lse = selfattn.varlen_attention(*arrays[1:], cu_q, cu_kv, **options, return_lse=True)
    return selfattn.varlen_attention_backward(*arrays, out, lse, cu_q, cu_kv, **options, need=need)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in OPTIONS if "dropout" not in name])
@pytest.mark.parametrize("causal", [False, "top_left", "bottom_right"])
def test_each_sequence_as_if_alone(isa, rng, causal, name, dtype):
    arrays, cu_q, cu_kv = packed(rng, dtype)
    mask = rng.random((6, cu_q[-1], max(KV_LENS))) < 0.9
    bias = rng.standard_normal((6, 1, max(KV_LENS))).astype(dtype)
    options = {"causal": causal} | OPTIONS[name]
    grads = backward_packed(arrays, cu_q, cu_kv, mask=mask, bias=bias, **options)
    assert [grad.shape for grad in grads] == [array.shape for array in arrays[1:]]
    assert {grad.dtype for grad in grads} == {np.dtype(dtype)}
    for q, kv in zip(itertools.pairwise(cu_q), itertools.pairwise(cu_kv), strict=True):
        bounds = {"grad_out": slice(*q), "query": slice(*q), "key": slice(*kv), "value": slice(*kv)}
        alone = [array[own].swapaxes(0, 1) for array, own in zip(arrays, bounds.values(), strict=True)]
        part = np.s_[:, slice(*q), : kv[1] - kv[0]]
        own = {"mask": mask[part], "bias": bias[..., : kv[1] - kv[0]]}
        for of, grad in backward(*alone, need=QKV, **own, **options).items():
            assert_same_bits(grads[QKV.index(of)][bounds[of]], grad.swapaxes(0, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_packed_is_padded(isa, rng, name, dtype):
    """The same words padded to the longest sequence, with NaN, and only the real ones counted. Of the numbers
    of a head, sums over all rows of all sequences, the rows are summed in another order.
    """
    lengths = np.array([9, 130, 0, 1, 77])
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    options = {"causal": True} | OPTIONS[name]
    need = [of for of in needed(options) if of != "bias"]
    arrays = [rng.standard_normal((bounds[-1], *tail)) for tail in ((6, 20), (6, 33), (2, 33), (2, 20))]
    arrays = [array.astype(dtype) for array in arrays]
    grads = backward_packed(arrays, bounds, None, need=need, **options)
    padded = [np.full((5, 130, *array.shape[1:]), np.nan, dtype) for array in arrays]
    for b, (begin, end) in enumerate(itertools.pairwise(bounds)):
        for room, array in zip(padded, arrays, strict=True):
            room[b, : end - begin] = array[begin:end]
    for array in padded[:2]:  # padded queries see keys, but the loss is none of their output
        array[np.isnan(array)] = 0
    real = np.arange(130) < lengths[:, None]
    heads_first = [array.swapaxes(1, 2) for array in padded]
    for of, grad in backward(*heads_first, need=need, kv_lengths=lengths, **options).items():
        if of in QKV:
            assert_same_bits(grads[need.index(of)], grad.swapaxes(1, 2)[real])
        else:
            np.testing.assert_allclose(grads[need.index(of)], grad, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_packed_on_any_number_of_threads(rng, name):
    arrays, cu_q, cu_kv = packed(rng, np.float32)
    need = needed(OPTIONS[name])

    def compute():
        results = [
            backward_packed(arrays, cu_q, cu_kv, need=need, num_threads=n, **OPTIONS[name]) for n in THREADS
        ]
        assert_all_the_same(*results)
        return results[0]

    assert_all_the_same(*on_every_isa_with_fma(compute))
