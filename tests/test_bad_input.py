"""Wrong arguments of the operator: one clear error that names the argument, both numbers and the way out."""

import os
import re
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from arrays import qkv

import selfattn
from selfattn import _kernels
from selfattn.attention import arrays as taking

# one good call, (batch 2, heads 4 over 2, queries 5, keys 7, head_dim 8); each case spoils one argument of it
LENGTHS = {"q_len": 5, "kv_len": 7}


@pytest.fixture
def good(rng):
    return dict(zip(("query", "key", "value"), qkv(rng, heads=4, kv_heads=2, dim=8, **LENGTHS), strict=True))


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


LONG = np.dtype("g").name
LARGEST = str(float(np.finfo(np.float32).max))


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
    "mask float": (TypeError, {"mask": zeros(5, 7)}, ["mask", "float32", "bool", "bias"]),
    "mask int": (TypeError, {"mask": zeros(5, 7, dtype=np.int32)}, ["mask", "int32", "bool"]),
    "mask too long": (ValueError, {"mask": zeros(5, 8, dtype=bool)}, ["mask", "(5, 8)", "(2, 4, 5, 7)"]),
    "mask rank 5": (ValueError, {"mask": zeros(1, 1, 1, 1, 7, dtype=bool)}, ["mask", "(1, 1, 1, 1, 7)"]),
    "mask has its own batch": (ValueError, {"mask": zeros(3, 1, 5, 7, dtype=bool)}, ["mask", "(3, 1, 5, 7)"]),
    "bias bool": (TypeError, {"bias": zeros(5, 7, dtype=bool)}, ["bias", "bool", "float32", "mask"]),
    "bias float64": (TypeError, {"bias": zeros(5, 7, dtype=np.float64)}, ["bias", "float64", "float32"]),
    "bias float16": (TypeError, {"bias": zeros(5, 7, dtype=np.float16)}, ["bias", "float16", "float32"]),
    "mask is a list": (TypeError, {"mask": [[True] * 7] * 5}, ["mask", "list"]),
    "bias is masked": (TypeError, {"bias": np.ma.zeros((5, 7), "f4")}, ["bias.data", "mask="]),
    "bias of kv heads": (ValueError, {"bias": zeros(2, 2, 5, 7)}, ["bias", "(2, 2, 5, 7)", "(2, 4, 5, 7)"]),
    "causal is ambiguous": (ValueError, {"causal": True}, ["causal", "5", "7", "top_left", "bottom_right"]),
    "causal misspelt": (ValueError, {"causal": "topleft"}, ["causal", "topleft", "top_left", "bottom_right"]),
    "causal a number": ((TypeError, ValueError), {"causal": 2}, ["causal", "2"]),
    "kv_lengths too long": (ValueError, {"kv_lengths": np.array([7, 8])}, ["kv_lengths", "8", "7"]),
    "kv_lengths negative": (ValueError, {"kv_lengths": np.array([-1, 7])}, ["kv_lengths", "-1"]),
    "kv_lengths of three": (ValueError, {"kv_lengths": np.array([1, 2, 3])}, ["kv_lengths", "(3,)", "(2,)"]),
    "kv_lengths rank 2": (ValueError, {"kv_lengths": np.array([[1, 2]])}, ["kv_lengths", "(1, 2)"]),
    "kv_lengths float": (TypeError, {"kv_lengths": np.array([1.0, 2.0])}, ["kv_lengths", "float64"]),
    "kv_lengths ragged": (ValueError, {"kv_lengths": [[1], [1, 2]]}, ["kv_lengths"]),
    "kv_lengths beyond int64": (
        ValueError,
        {"kv_lengths": np.array([1, 2**63], "u8")},
        ["kv_lengths", f"{2**63}, which is beyond int64"],
    ),
    "kv_lengths bool": (TypeError, {"kv_lengths": np.array([True, False])}, ["kv_lengths", "bool"]),
    "scale NaN": (ValueError, {"scale": float("nan")}, ["scale", "nan"]),
    "scale infinite": (ValueError, {"scale": float("-inf")}, ["scale", "-inf"]),
    "scale beyond float32": (ValueError, {"scale": 1e39}, ["scale", "1e+39"]),
    "scale text": (TypeError, {"scale": "1"}, ["scale"]),
    "window negative": (ValueError, {"window": (-1, 0)}, ["window", "-1", "None"]),
    "window negative to the right": (ValueError, {"window": (None, -2)}, ["window", "-2", "None"]),
    "window one number": (TypeError, {"window": 3}, ["window", "3", "(left, right)"]),
    "window of three": (TypeError, {"window": (1, 2, 3)}, ["window", "(1, 2, 3)", "(left, right)"]),
    "window float": (TypeError, {"window": (1.0, 2)}, ["window", "1.0", "integer"]),
    "window bool": (TypeError, {"window": (True, 2)}, ["window", "True", "integer"]),
    "softcap 0": (ValueError, {"softcap": 0.0}, ["softcap", "0.0"]),
    "softcap negative": (ValueError, {"softcap": -30}, ["softcap", "-30"]),
    "softcap NaN": (ValueError, {"softcap": float("nan")}, ["softcap", "nan"]),
    "softcap infinite": (ValueError, {"softcap": np.inf}, ["softcap", "inf"]),
    "softcap below float32": (ValueError, {"softcap": 1e-40}, ["softcap", "1e-40"]),
    "softcap text": (TypeError, {"softcap": "30"}, ["softcap", "str"]),
    "alibi_slopes of kv heads": (ValueError, {"alibi_slopes": zeros(2)}, ["alibi_slopes", "(2,)", "(4,)"]),
    "alibi_slopes rank 2": (ValueError, {"alibi_slopes": zeros(4, 1)}, ["alibi_slopes", "(4, 1)", "(4,)"]),
    "alibi_slopes one number": (TypeError, {"alibi_slopes": 0.5}, ["alibi_slopes", "float"]),
    "alibi_slopes NaN": (ValueError, {"alibi_slopes": np.full(4, np.nan)}, ["alibi_slopes", "nan", "finite"]),
    "alibi_slopes beyond float32": (
        ValueError,
        {"alibi_slopes": [0, 1e39, 1, 1]},
        ["slopes[1]=1e+39", LARGEST],
    ),
    "alibi_slopes bool": (
        TypeError,
        {"alibi_slopes": zeros(4, dtype=bool)},
        ["alibi_slopes", "bool", "real"],
    ),
    "sinks complex": (TypeError, {"sinks": zeros(4, dtype=complex)}, ["sinks", "complex128", "real"]),
    "sinks of five": (ValueError, {"sinks": [0.0] * 5}, ["sinks", "(5,)", "(4,)"]),
    "sinks beyond float32": (ValueError, {"sinks": [0, 1e39, 0, 0]}, ["sinks[1]=1e+39", "float32", LARGEST]),
    "sinks below float32": (ValueError, {"sinks": [0, 0, -1e39, 0]}, ["sinks[2]=-1e+39", LARGEST, "-inf"]),
    "sinks infinite": (ValueError, {"sinks": [-np.inf, 0, 0, np.inf]}, ["sinks[3]=inf", "float32", "-inf"]),
    "sinks NaN": (ValueError, {"sinks": [np.nan, 0, 0, 0]}, ["sinks[0]=nan", "finite", "-inf is no sink"]),
    "sinks object": (TypeError, {"sinks": zeros(4, dtype=object)}, ["sinks", "object", "real"]),
    "precision unknown": (ValueError, {"precision": "float16"}, ["precision", "float16", "bfloat16"]),
    "precision a dtype": (ValueError, {"precision": np.float32}, ["precision", "float32", "bfloat16"]),
    "num_threads 0": (ValueError, {"num_threads": 0}, ["num_threads", "0"]),
    "num_threads negative": (ValueError, {"num_threads": -3}, ["num_threads", "-3"]),
    "num_threads text": (TypeError, {"num_threads": "2"}, ["num_threads", "str"]),
    "num_threads float": (TypeError, {"num_threads": 2.0}, ["num_threads", "float"]),
    "out of another shape": (ValueError, {"out": zeros(2, 4, 5, 9)}, ["out", "(2, 4, 5, 9)", "(2, 4, 5, 8)"]),
    "out float64": (TypeError, {"out": zeros(2, 4, 5, 8, dtype=np.float64)}, ["out", "float64", "float32"]),
    "out float16": (TypeError, {"out": zeros(2, 4, 5, 8, dtype=np.float16)}, ["out", "float16", "float32"]),
    "out is a list": (TypeError, {"out": []}, ["out", "list"]),
    "out is bytes": (TypeError, {"out": bytes(1280)}, ["out", "uint8", "float32"]),
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


WITHOUT_VALUE = [
    name
    for name, (_, spoiled, _) in CASES.items()
    if not {"value", "out"} & spoiled.keys() and name not in ("kv_len differs", "kv heads differ")
]


@pytest.mark.parametrize("name", WITHOUT_VALUE)
@pytest.mark.parametrize("function", [selfattn.attention_weights, selfattn.attention_column_sums])
def test_its_siblings_say_the_same(good, function, name):
    error, spoiled, parts = CASES[name]
    del good["value"]
    with pytest.raises(error) as caught:
        function(**{**good, **spoiled})
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_bfloat16_precision_is_not_for_float64(good):
    wide = {name: array.astype(np.float64) for name, array in good.items()}
    with pytest.raises(ValueError, match=r"precision.*float64"):
        selfattn.attention(**wide, precision="bfloat16")


def test_numbers_beyond_float32_are_for_float64(good):
    wide = {name: array.astype(np.float64) for name, array in good.items()}
    sinks = [1e39, -1e300, 0, -np.inf]
    out = selfattn.attention(**wide, scale=1e39, alibi_slopes=[1e39] * 4, softcap=1e300, sinks=sinks)
    assert np.isfinite(out).all()
    with pytest.raises(ValueError, match=r"scale.*float64"):
        selfattn.attention(**wide, scale=np.inf)


@pytest.mark.parametrize(
    ("rows", "error", "parts"),
    [
        ([5], ValueError, ["rows", "5"]),
        ([0.5], TypeError, ["rows", "float64"]),
        ([-6], ValueError, ["rows", "-6"]),
        ([True], TypeError, ["rows", "bool"]),
        ([[0]], ValueError, ["rows", "(1, 1)"]),
        (2, ValueError, ["rows", "()"]),
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


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_call_that_ends_half_way_leaves_out_untouched(good, monkeypatch, error):
    def write_half(query, key, value, out, *rest, **options):
        out.reshape(-1)[::2] = 1
        raise error

    monkeypatch.setattr(_kernels, "attention", write_half)
    monkeypatch.setattr(taking, "_SHORT", 0)  # no call is so short that it cannot be interrupted
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


def test_a_source_folder_that_is_not_built(tmp_path):
    """It hides the installed package from whoever starts Python beside it."""
    package = tmp_path / "selfattn"
    package.mkdir()
    shutil.copy(selfattn.__file__, package)
    process = run_python("import selfattn", PYTHONPATH=str(tmp_path))
    assert process.returncode == 1
    last = process.stderr.strip().splitlines()[-1]
    for said in ("ImportError: ", str(package), "_kernels", "build_ext --inplace", "another directory"):
        assert said in last


@pytest.mark.parametrize("name", selfattn.available_isas())
def test_a_forced_instruction_set(name):
    process = run_python("import selfattn; print(selfattn.active_isa())", SELFATTN_ISA=name)
    assert process.stdout.strip() == name, process.stderr


def test_an_unset_instruction_set_is_the_best_one():
    process = run_python("import selfattn; print(selfattn.active_isa())", SELFATTN_ISA="")
    assert process.stdout.strip() == selfattn.available_isas()[0], process.stderr
