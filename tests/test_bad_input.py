"""Wrong arguments of the operator: one clear error that names the argument, both numbers and the way out."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from arrays import qkv

import selfattn

# one good call, (batch 2, heads 4 over 2, queries 5, keys 7, head_dim 8); each case spoils one argument of it
LENGTHS = {"q_len": 5, "kv_len": 7}


@pytest.fixture
def good(rng):
    return dict(zip(("query", "key", "value"), qkv(rng, heads=4, kv_heads=2, dim=8, **LENGTHS), strict=True))


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


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
    "query big-endian": (TypeError, {"query": zeros(2, 4, 5, 8, dtype=">f4")}, ["query", ">f4", "float32"]),
    "query is text": (TypeError, {"query": "pizza"}, ["query", "float32"]),
    "key is None": (TypeError, {"key": None}, ["key", "float32"]),
    "mask float": (TypeError, {"mask": zeros(5, 7)}, ["mask", "float32", "bool", "bias"]),
    "mask int": (TypeError, {"mask": zeros(5, 7, dtype=np.int32)}, ["mask", "int32", "bool"]),
    "mask too long": (ValueError, {"mask": zeros(5, 8, dtype=bool)}, ["mask", "(5, 8)", "(2, 4, 5, 7)"]),
    "mask rank 5": (ValueError, {"mask": zeros(1, 1, 1, 1, 7, dtype=bool)}, ["mask", "(1, 1, 1, 1, 7)"]),
    "mask has its own batch": (ValueError, {"mask": zeros(3, 1, 5, 7, dtype=bool)}, ["mask", "(3, 1, 5, 7)"]),
    "bias bool": (TypeError, {"bias": zeros(5, 7, dtype=bool)}, ["bias", "bool", "float32", "mask"]),
    "bias float64": (TypeError, {"bias": zeros(5, 7, dtype=np.float64)}, ["bias", "float64", "float32"]),
    "bias of kv heads": (ValueError, {"bias": zeros(2, 2, 5, 7)}, ["bias", "(2, 2, 5, 7)", "(2, 4, 5, 7)"]),
    "causal is ambiguous": (ValueError, {"causal": True}, ["causal", "5", "7", "top_left", "bottom_right"]),
    "causal misspelt": (ValueError, {"causal": "topleft"}, ["causal", "topleft", "top_left", "bottom_right"]),
    "causal a number": ((TypeError, ValueError), {"causal": 2}, ["causal", "2"]),
    "kv_lengths too long": (ValueError, {"kv_lengths": np.array([7, 8])}, ["kv_lengths", "8", "7"]),
    "kv_lengths negative": (ValueError, {"kv_lengths": np.array([-1, 7])}, ["kv_lengths", "-1"]),
    "kv_lengths of three": (ValueError, {"kv_lengths": np.array([1, 2, 3])}, ["kv_lengths", "(3,)", "(2,)"]),
    "kv_lengths rank 2": (ValueError, {"kv_lengths": np.array([[1, 2]])}, ["kv_lengths", "(1, 2)"]),
    "kv_lengths float": (TypeError, {"kv_lengths": np.array([1.0, 2.0])}, ["kv_lengths", "float64"]),
    "kv_lengths bool": (TypeError, {"kv_lengths": np.array([True, False])}, ["kv_lengths", "bool"]),
    "scale NaN": (ValueError, {"scale": float("nan")}, ["scale", "nan"]),
    "scale infinite": (ValueError, {"scale": float("-inf")}, ["scale", "-inf"]),
    "scale beyond float32": (ValueError, {"scale": 1e39}, ["scale", "1e+39"]),
    "scale text": (TypeError, {"scale": "1"}, ["scale"]),
    "num_threads 0": (ValueError, {"num_threads": 0}, ["num_threads", "0"]),
    "num_threads negative": (ValueError, {"num_threads": -3}, ["num_threads", "-3"]),
    "num_threads text": (TypeError, {"num_threads": "2"}, ["num_threads", "str"]),
    "num_threads float": (TypeError, {"num_threads": 2.0}, ["num_threads", "float"]),
    "out of another shape": (ValueError, {"out": zeros(2, 4, 5, 9)}, ["out", "(2, 4, 5, 9)", "(2, 4, 5, 8)"]),
    "out float64": (TypeError, {"out": zeros(2, 4, 5, 8, dtype=np.float64)}, ["out", "float64", "float32"]),
    "out is a list": (TypeError, {"out": []}, ["out"]),
    "an unknown option": (TypeError, {"dropuot": 0.5}, ["dropuot"]),
}


@pytest.mark.parametrize("name", CASES)
def test_one_clear_error(good, name):
    error, spoiled, parts = CASES[name]
    with pytest.raises(error) as caught:
        selfattn.attention(**{**good, **spoiled})
    message = str(caught.value)
    missing = [part for part in parts if part not in message]
    assert not missing, f"{message!r} does not say {missing}"


WEIGHTS_CASES = [
    name
    for name, (_, spoiled, _) in CASES.items()
    if not {"value", "out"} & spoiled.keys() and name not in ("kv_len differs", "kv heads differ")
]


@pytest.mark.parametrize("name", WEIGHTS_CASES)
def test_attention_weights_says_the_same(good, name):
    error, spoiled, parts = CASES[name]
    del good["value"]
    with pytest.raises(error) as caught:
        selfattn.attention_weights(**{**good, **spoiled})
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize(
    ("rows", "error", "parts"),
    [
        ([5], (ValueError, IndexError), ["rows", "5"]),
        ([0.5], TypeError, ["rows", "float64"]),
        ([[0]], ValueError, ["rows", "(1, 1)"]),
    ],
)
def test_rows_of_attention_weights(good, rows, error, parts):
    with pytest.raises(error) as caught:
        selfattn.attention_weights(good["query"], good["key"], rows=rows)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


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


def test_positional_options_are_refused(good):
    with pytest.raises(TypeError, match="positional"):
        selfattn.attention(good["query"], good["key"], good["value"], np.ones((5, 7), bool))


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "name", ["sse9", "AVX2", " ", "neon" if "neon" not in selfattn.available_isas() else "avx2"]
)
def test_an_instruction_set_that_is_not_here(name):
    process = run_python("import selfattn", SELFATTN_ISA=name)
    assert process.returncode == 1
    last = process.stderr.strip().splitlines()[-1]
    assert re.match("ImportError: ", last), last
    assert repr(name) in last
    for available in selfattn.available_isas():
        assert available in last


@pytest.mark.parametrize("name", selfattn.available_isas())
def test_a_forced_instruction_set(name):
    process = run_python("import selfattn; print(selfattn.active_isa())", SELFATTN_ISA=name)
    assert process.stdout.strip() == name, process.stderr


def test_an_unset_instruction_set_is_the_best_one():
    process = run_python("import selfattn; print(selfattn.active_isa())", SELFATTN_ISA="")
    assert process.stdout.strip() == selfattn.available_isas()[0], process.stderr
