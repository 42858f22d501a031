# SPDX-License-Identifier: Apache-2.0
"""varlen_attention: sequences one after another give what each of them gives alone, to the last bit."""

import itertools

import numpy as np
import pytest
from support.accuracy import DTYPES, assert_same_bits, check_attention
from support.arrays import LAYOUTS

import selfattn

HEADS, KV_HEADS, DIM, VALUE_DIM = 4, 2, 20, 24
Q_LENS = (7, 0, 1, 33, 70)
KV_LENS = (12, 5, 0, 33, 41)
SLOPES = selfattn.alibi_slopes(HEADS)

pytestmark = pytest.mark.usefixtures("isa")


def cu(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def packed(rng, q_lens=Q_LENS, kv_lens=KV_LENS, dtype=np.float32):
    """query (total_q, heads, dim), key and value (total_kv, kv_heads, ...), and the bounds of both."""
    shapes = (sum(q_lens), HEADS, DIM), (sum(kv_lens), KV_HEADS, DIM), (sum(kv_lens), KV_HEADS, VALUE_DIM)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    return (*arrays, cu(q_lens), cu(kv_lens))


def scores_part(array, queries, kv_len):
    """The part of a mask or bias, broadcast to (heads, total_q, max_kv_len), that is one sequence's."""
    whole = np.broadcast_to(array, (HEADS, sum(Q_LENS), max(KV_LENS)))
    return whole[:, queries, :kv_len]


def one_by_one(query, key, value, cu_q, cu_kv, **options):
    """The same attention sequence by sequence: (sequences' slice of queries, output, lse)."""
    mask, bias, lengths = (options.pop(name, None) for name in ("mask", "bias", "kv_lengths"))
    for b in range(len(cu_q) - 1):
        queries, keys = slice(cu_q[b], cu_q[b + 1]), slice(cu_kv[b], cu_kv[b + 1])
        kv_len = int(keys.stop - keys.start)
        own = dict(options)
        for name, array in (("mask", mask), ("bias", bias)):
            if array is not None:
                own[name] = scores_part(array, queries, kv_len)
        if lengths is not None:
            own["kv_lengths"] = [lengths[b]]
        alone = (array.swapaxes(0, 1) for array in (query[queries], key[keys], value[keys]))
        yield queries, *selfattn.attention(*alone, **own, return_lse=True)


def check(query, key, value, cu_q, cu_kv, **options):
    out, lse = selfattn.varlen_attention(query, key, value, cu_q, cu_kv, **options, return_lse=True)
    assert out.shape == (len(query), HEADS, VALUE_DIM)
    assert lse.shape == (HEADS, len(query))
    for queries, alone, lse_alone in one_by_one(query, key, value, cu_q, cu_kv, **options):
        assert_same_bits(out[queries], alone.swapaxes(0, 1))
        assert_same_bits(lse[:, queries], lse_alone)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, "top_left", "bottom_right"])
def test_each_sequence_as_if_alone(rng, causal, dtype):
    assert check(*packed(rng, dtype=dtype), causal=causal).dtype == dtype


OPTIONS = {
    "mask of every query": {"mask": np.arange(sum(Q_LENS) * 41).reshape(sum(Q_LENS), 41) % 5 != 2},
    "mask of keys": {"mask": np.arange(41) % 3 != 0},
    "mask of heads": {"mask": np.array([True, False, True, True])[:, None, None]},
    "bias of heads and keys": {
        "bias": np.linspace(-2, 2, HEADS * 41, dtype=np.float32).reshape(HEADS, 1, 41)
    },
    "bias of queries": {"bias": np.linspace(-2, 2, sum(Q_LENS), dtype=np.float32)[:, None]},
    "one bias": {"bias": np.array(0.5, np.float32)},
    "window": {"window": (9, 2)},
    "kv_lengths": {"kv_lengths": [12, 0, 0, 20, 1]},
    "scale": {"scale": -0.5},
    "softcap": {"softcap": 2.0},
    "alibi": {"alibi_slopes": SLOPES},
    "sinks": {"sinks": np.arange(4)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("causal", [False, "top_left", "bottom_right"])
def test_each_option(rng, causal, options):
    check(*packed(rng), causal=causal, **options)


@pytest.mark.parametrize("causal", [False, "top_left", "bottom_right"])
def test_all_options_together(rng, causal):
    arrays = packed(rng)
    every = {
        "mask": rng.random((HEADS, sum(Q_LENS), max(KV_LENS))) < 0.8,
        "bias": rng.standard_normal((sum(Q_LENS), max(KV_LENS))).astype(np.float32),
        "window": (20, 4),
        "kv_lengths": [10, 5, 0, 33, 30],
        "softcap": 1.5,
        "alibi_slopes": SLOPES,
        "sinks": np.linspace(-1, 1, HEADS),
    }
    for chosen in itertools.product([False, True], repeat=len(every)):
        check(*arrays, causal=causal, **dict(itertools.compress(every.items(), chosen)))


@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_needs_one_array_of_bounds(rng, causal):
    query, key, value, bounds, _ = packed(rng, Q_LENS, Q_LENS)
    expected = check(query, key, value, bounds, bounds, causal=causal)
    assert_same_bits(selfattn.varlen_attention(query, key, value, bounds, causal=causal), expected)
    assert_same_bits(selfattn.varlen_attention(query, key, value, bounds.tolist(), causal=causal), expected)


def test_packed_is_padded(rng):
    """The same words padded to the longest sequence, and only the real ones counted."""
    lengths = (9, 30, 1, 17)
    query, key, value, bounds, _ = packed(rng, lengths, lengths)
    padded = [np.full((4, 30, *array.shape[1:]), np.nan, np.float32) for array in (query, key, value)]
    for b, (begin, end) in enumerate(itertools.pairwise(bounds)):
        for room, array in zip(padded, (query, key, value), strict=True):
            room[b, : end - begin] = array[begin:end]
    heads_first = [array.swapaxes(1, 2) for array in padded]
    out = selfattn.attention(*heads_first, kv_lengths=lengths, causal=True).swapaxes(1, 2)
    real = np.arange(30) < np.array(lengths)[:, None]
    assert_same_bits(selfattn.varlen_attention(query, key, value, bounds, causal=True), out[real])


def test_against_the_reference(rng):
    query, key, value, *bounds = packed(rng, (300,), (300,))
    out = selfattn.varlen_attention(query, key, value, *bounds, window=(40, 0), softcap=3.0)
    heads_first = (array.swapaxes(0, 1) for array in (query, key, value))
    assert_same_bits(out.swapaxes(0, 1), check_attention(*heads_first, window=(40, 0), softcap=3.0))


@pytest.mark.parametrize("num_threads", [2, 3])
def test_the_number_of_threads_does_not_show(rng, num_threads):
    arrays = packed(rng, (200, 3, 150, 0, 90), (200, 3, 150, 0, 90))
    expected = selfattn.varlen_attention(*arrays, causal=True, num_threads=1)
    assert_same_bits(selfattn.varlen_attention(*arrays, causal=True, num_threads=num_threads), expected)


def test_a_sequence_reaches_no_other(rng):
    query, key, value, cu_q, cu_kv = packed(rng)
    expected = selfattn.varlen_attention(query, key, value, cu_q, cu_kv)
    for array, bounds in ((query, cu_q), (key, cu_kv), (value, cu_kv)):
        array[bounds[3] : bounds[4]] = np.nan
    out = selfattn.varlen_attention(query, key, value, cu_q, cu_kv)
    rest = np.r_[0 : cu_q[3], cu_q[4] : cu_q[5]]
    assert_same_bits(out[rest], expected[rest])
    assert np.isnan(out[cu_q[3] : cu_q[4]]).all()


@pytest.mark.parametrize(
    ("q_lens", "kv_lens"), [((), ()), ((0, 0), (0, 0)), ((0, 0), (3, 1)), ((3, 1), (0, 0))]
)
def test_nothing_to_attend_to(rng, q_lens, kv_lens):
    query, key, value, *bounds = packed(rng, q_lens, kv_lens)
    out, lse = selfattn.varlen_attention(query, key, value, *bounds, return_lse=True)
    assert out.shape == (sum(q_lens), HEADS, VALUE_DIM)
    assert not out.any()
    assert np.isneginf(lse).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(rng, layout):
    query, key, value, *bounds = packed(rng)
    mask = rng.random((HEADS, sum(Q_LENS), max(KV_LENS))) < 0.8
    expected = selfattn.varlen_attention(query, key, value, *bounds, mask=mask)
    lay = LAYOUTS[layout]
    assert_same_bits(
        selfattn.varlen_attention(lay(query), lay(key), lay(value), *bounds, mask=lay(mask)), expected
    )
    if layout != "read_only":
        out = lay(np.full(expected.shape, np.nan, np.float32))
        assert selfattn.varlen_attention(query, key, value, *bounds, mask=mask, out=out) is out
        assert_same_bits(np.array(out), expected)


def test_out_may_be_an_input(rng):
    x = rng.standard_normal((40, HEADS, DIM)).astype(np.float32)
    expected = selfattn.varlen_attention(x, x, x, [0, 15, 40])
    assert selfattn.varlen_attention(x, x, x, [0, 15, 40], out=x) is x
    assert_same_bits(x, expected)


WRONG = {
    "rank 4": (ValueError, {"query": np.zeros((1, 8, 4, 20), "f4")}, ["query", "(1, 8, 4, 20)", "total_q"]),
    "value rank 2": (ValueError, {"value": np.zeros((9, 24), "f4")}, ["value", "(9, 24)", "total_kv"]),
    "totals differ": (ValueError, {"value": np.zeros((8, 2, 24), "f4")}, ["kv_len=9", "kv_len=8"]),
    "heads": (ValueError, {"query": np.zeros((8, 3, 20), "f4")}, ["num_heads=3", "num_kv_heads=2"]),
    "dtype": (TypeError, {"key": np.zeros((9, 2, 20))}, ["key", "float64", "float32"]),
    "bounds end early": (ValueError, {"cu_seqlens_q": [0, 3, 7]}, ["cu_seqlens_q", "7", "query", "8"]),
    "bounds begin late": (ValueError, {"cu_seqlens_kv": [1, 3, 9]}, ["cu_seqlens_kv", "1", "key", "9"]),
    "bounds fall": (ValueError, {"cu_seqlens_q": [0, 9, 8]}, ["cu_seqlens_q[2]=8", "cu_seqlens_q[1]=9"]),
    "bounds negative": (ValueError, {"cu_seqlens_q": [0, -1, 8]}, ["cu_seqlens_q[1]=-1"]),
    "bounds float": (TypeError, {"cu_seqlens_q": [0.0, 8.0]}, ["cu_seqlens_q", "float64", "integers"]),
    "bounds rank 2": (ValueError, {"cu_seqlens_q": [[0, 8]]}, ["cu_seqlens_q", "(1, 2)"]),
    "no bounds": (ValueError, {"cu_seqlens_kv": []}, ["cu_seqlens_kv", "(0,)"]),
    "more sequences of keys": (
        ValueError,
        {"cu_seqlens_kv": [0, 4, 6, 9]},
        ["2 sequences", "cu_seqlens_kv 3"],
    ),
    "one array of bounds": (ValueError, {"cu_seqlens_kv": None}, ["cu_seqlens_q", "8", "key", "9"]),
    "ambiguous": (ValueError, {"causal": True}, ["causal", "q_len=5", "kv_len=6", "sequence 1", "top_left"]),
    "causal misspelt": (ValueError, {"causal": "topleft"}, ["causal", "topleft", "bottom_right"]),
    "mask of another total": (ValueError, {"mask": np.ones((9, 6), bool)}, ["mask", "(9, 6)", "(4, 8, 6)"]),
    "mask of rank 4": (ValueError, {"mask": np.ones((1, 1, 1, 6), bool)}, ["mask", "(1, 1, 1, 6)"]),
    "bias of all keys": (ValueError, {"bias": np.ones((8, 9), "f4")}, ["bias", "(8, 9)", "max_kv_len"]),
    "kv_lengths too long": (ValueError, {"kv_lengths": [4, 2]}, ["kv_lengths[0]=4", "3"]),
    "kv_lengths of one": (ValueError, {"kv_lengths": [4]}, ["kv_lengths", "(1,)", "(2,)"]),
    "out heads first": (ValueError, {"out": np.zeros((4, 8, 24), "f4")}, ["out", "(4, 8, 24)", "(8, 4, 24)"]),
    "window": (ValueError, {"window": (-3, 0)}, ["window", "-3"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_clear_error(rng, name):
    error, spoiled, parts = WRONG[name]
    good = dict(zip(("query", "key", "value"), packed(rng, (3, 5), (3, 6)), strict=False))
    good |= {"cu_seqlens_q": [0, 3, 8], "cu_seqlens_kv": [0, 3, 9]}
    selfattn.varlen_attention(**good)
    with pytest.raises(error) as caught:
        selfattn.varlen_attention(**{**good, **spoiled})
    missing = [part for part in parts if part not in str(caught.value)]
    assert not missing, f"{caught.value} does not say {missing}"
