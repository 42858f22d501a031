# SPDX-License-Identifier: Apache-2.0
"""Wrong arrays: one clear error that names the argument, both numbers and the way out. What out= may be."""

import signal
from types import SimpleNamespace

import numpy as np
import pytest
from support.errors import assert_one_clear_error, without_value

import selfattn
from selfattn._native import operator as _operator
from selfattn.attention import arrays as taking


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


LONG = np.dtype("g").name


class Elsewhere:
    """An array that lies on another device: DLPack's number 2 is CUDA."""

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **options):
        raise BufferError("this array is not on the CPU")


# what is spoiled -> the error, and what its message must hold
CASES = {
    "query rank 2": (ValueError, {"query": zeros(5, 8)}, ["query", "(5, 8)"]),
    "query rank 0": (ValueError, {"query": zeros()}, ["query", "()"]),
    "key rank 1": (ValueError, {"key": zeros(8)}, ["key", "(8,)"]),
    "value rank 2": (ValueError, {"value": zeros(7, 8)}, ["value", "(7, 8)"]),
    "head_dim differs": (ValueError, {"key": zeros(2, 2, 7, 9)}, ["head_dim", "8", "9"]),
    "head_dim 0": (ValueError, {"query": zeros(2, 4, 5, 0), "key": zeros(2, 2, 7, 0)}, ["head_dim", "0"]),
    "kv_len differs": (ValueError, {"value": zeros(2, 2, 6, 8)}, ["kv_len", "7", "6"]),
    "kv heads differ": (ValueError, {"value": zeros(2, 4, 7, 8)}, ["num_kv_heads", "2", "4"]),
    "heads not a multiple": (
        ValueError,
        {"query": zeros(2, 10, 5, 8), "key": zeros(2, 4, 7, 8), "value": zeros(2, 4, 7, 8)},
        ["num_heads=10", "num_kv_heads=4"],
    ),
    "fewer heads than kv heads": (
        ValueError,
        {"query": zeros(2, 1, 5, 8)},
        ["num_heads=1", "num_kv_heads=2"],
    ),
    "no heads": (ValueError, {"query": zeros(2, 0, 5, 8)}, ["num_heads"]),
    "no kv heads": (ValueError, {"key": zeros(2, 0, 7, 8), "value": zeros(2, 0, 7, 8)}, ["num_kv_heads"]),
    "batches do not broadcast": (ValueError, {"key": zeros(3, 2, 7, 8)}, ["2", "3"]),
    "query float64": (
        TypeError,
        {"query": zeros(2, 4, 5, 8, dtype=np.float64)},
        ["query", "float64", "float32"],
    ),
    "key float16": (TypeError, {"key": zeros(2, 2, 7, 8, dtype=np.float16)}, ["key", "float16", "float32"]),
    "value complex": (
        TypeError,
        {"value": zeros(2, 2, 7, 8, dtype=complex)},
        ["value", "complex128", "float32"],
    ),
    "query int": (TypeError, {"query": zeros(2, 4, 5, 8, dtype=int)}, ["query", "int64", "float32"]),
    "key object": (TypeError, {"key": zeros(2, 2, 7, 8, dtype=object)}, ["key", "object", "float32"]),
    "value bool": (TypeError, {"value": zeros(2, 2, 7, 8, dtype=bool)}, ["value", "bool", "float32"]),
    "query long double": (TypeError, {"query": zeros(2, 4, 5, 8, dtype="g")}, ["query", LONG, "float64"]),
    "all int": (
        TypeError,
        {"query": zeros(2, 4, 5, 8, dtype=int), "key": zeros(2, 2, 7, 8, dtype=int)},
        ["query", "int64", "float16", "bfloat16", "query.astype(np.float32)"],
    ),
    "key of another dtype": (
        TypeError,
        {"key": zeros(2, 2, 7, 8, dtype=np.float64)},
        ["query has dtype float32", "key has dtype float64", "key.astype(query.dtype)"],
    ),
    "query of records": (TypeError, {"query": zeros(2, 4, 5, 8, dtype="f4,f4")}, ["query", "float32"]),
    "query is text": (TypeError, {"query": "pizza"}, ["query", "str", "__dlpack__", "buffer"]),
    "query is bytes": (TypeError, {"query": b"pizza"}, ["query", "uint8", "float32"]),
    "query is a list": (TypeError, {"query": [[[1.0]]]}, ["query", "list", "NumPy"]),
    "query is a matrix": (ValueError, {"query": zeros(5, 8).view(np.matrix)}, ["query", "(5, 8)"]),
    "query is masked": (TypeError, {"query": np.ma.zeros((2, 4, 5, 8), "f4")}, ["query.data", "mask="]),
    "key is None": (TypeError, {"key": None}, ["key", "None"]),
    "key requires grad": (TypeError, {"key": SimpleNamespace(requires_grad=True)}, ["key.detach()"]),
    "key is elsewhere": (TypeError, {"key": Elsewhere()}, ["key"]),
    "out of another shape": (ValueError, {"out": zeros(2, 4, 5, 9)}, ["out", "(2, 4, 5, 9)", "(2, 4, 5, 8)"]),
    "out float64": (TypeError, {"out": zeros(2, 4, 5, 8, dtype=np.float64)}, ["out", "float64", "float32"]),
    "out float16": (TypeError, {"out": zeros(2, 4, 5, 8, dtype=np.float16)}, ["out", "float16", "float32"]),
    "out is a list": (TypeError, {"out": []}, ["out", "list"]),
    "out is bytes": (TypeError, {"out": bytes(1280)}, ["out", "uint8", "float32"]),
}


@pytest.mark.parametrize("name", CASES)
def test_one_clear_error(good, name):
    assert_one_clear_error(selfattn.attention, good, CASES[name])


@pytest.mark.parametrize("name", without_value(CASES))
@pytest.mark.parametrize("function", [selfattn.attention_weights, selfattn.attention_column_sums])
def test_its_siblings_say_the_same(good, function, name):
    del good["value"]
    assert_one_clear_error(function, good, CASES[name])


def test_a_read_only_out_is_refused(good):
    out = zeros(2, 4, 5, 8)
    out.flags.writeable = False
    with pytest.raises(ValueError, match=r"out.*read-only"):
        selfattn.attention(**good, out=out)


def test_an_out_whose_elements_share_memory_is_refused(good):
    out = np.lib.stride_tricks.as_strided(zeros(8), (2, 4, 5, 8), (0, 0, 0, 4))
    with pytest.raises(ValueError, match="out"):
        selfattn.attention(**good, out=out)


def test_an_error_leaves_out_untouched(good):
    out = np.full((2, 4, 5, 8), 7, np.float32)
    with pytest.raises(ValueError, match="causal"):
        selfattn.attention(**good, causal=True, out=out)
    assert (out == 7).all()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_call_that_ends_half_way_leaves_out_untouched(good, monkeypatch, error):
    def write_half(query, key, value, out, *rest, **options):
        out.reshape(-1)[::2] = 1
        raise error

    monkeypatch.setattr(_operator, "attention", write_half)
    monkeypatch.setattr(taking, "MOST_DIRECT_WORK", 0)  # no call is so short that it cannot be interrupted
    out = np.full((2, 4, 5, 8), 7, np.float32)
    with pytest.raises(error):
        selfattn.attention(**good, out=out)
    assert (out == 7).all()


def test_ctrl_c_leaves_out_as_it_was_or_whole(rng):
    """Short calls write into it at once and are not interrupted; the timer strikes everywhere in them."""

    def interrupt(*_):
        raise KeyboardInterrupt

    query, key, value = (rng.standard_normal((1, 8, 600, 64), dtype=np.float32) for _ in range(3))
    expected = selfattn.attention(query, key, value)
    struck = 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(40):
            out = np.full_like(query, 7)
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-4 + i * 2e-4)
                selfattn.attention(query, key, value, out=out, num_threads=1 + i % 2)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                struck += 1
            assert (out == 7).all() or (out == expected).all()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert struck
