# SPDX-License-Identifier: Apache-2.0
"""Wrong options: one clear error that names the argument, both numbers and the way out."""

from functools import partial

import numpy as np
import pytest
from support.errors import assert_one_clear_error, without_value

import selfattn
from selfattn.attention.options import AttentionOptions, Problem, checked, no_options


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


LARGEST = str(float(np.finfo(np.float32).max))

# what is spoiled -> the error, and what its message must hold
CASES = {
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
    "an unknown option": (TypeError, {"dropuot": 0.5}, ["dropuot"]),
}


@pytest.mark.parametrize("name", CASES)
def test_one_clear_error(good, name):
    assert_one_clear_error(selfattn.attention, good, CASES[name])


@pytest.mark.parametrize("name", without_value(CASES))
@pytest.mark.parametrize("function", [selfattn.attention_weights, selfattn.attention_column_sums])
def test_its_siblings_say_the_same(good, function, name):
    del good["value"]
    assert_one_clear_error(function, good, CASES[name])


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


def test_positional_options_are_refused(good):
    with pytest.raises(TypeError, match="positional"):
        selfattn.attention(good["query"], good["key"], good["value"], np.ones((5, 7), bool))


# ---- forms that take options by **options ----


def forms(good):
    """Every form of the operator as a function of its options, and the options that it does not take."""
    query, key, value = good.values()
    out, lse = selfattn.attention(query, key, value, return_lse=True)
    packed = [
        array.swapaxes(1, 2).reshape(-1, array.shape[1], array.shape[3]) for array in (query, key, value)
    ]
    bounds = [0, 5, 10], [0, 7, 14]
    packed_out, packed_lse = selfattn.varlen_attention(*packed, *bounds, return_lse=True)
    cache = selfattn.KVCache(2, 2, 8, capacity=7)
    cache.append(key, value)
    backward = partial(selfattn.attention_backward, out, query, key, value, out, lse)
    packed_backward = partial(
        selfattn.varlen_attention_backward, packed_out, *packed, packed_out, packed_lse, *bounds
    )
    no_dropout, no_lengths = {"dropout", "seed"}, {"dropout", "seed", "kv_lengths"}
    return {
        "attention_weights": (partial(selfattn.attention_weights, query, key), no_dropout),
        "attention_column_sums": (partial(selfattn.attention_column_sums, query, key), no_dropout),
        "varlen_attention": (partial(selfattn.varlen_attention, *packed, *bounds), set()),
        "paged_attention": (
            partial(selfattn.paged_attention, query, key, value, [[0], [1]], [7, 7]),
            no_dropout,  # kv_lengths are its fifth argument
        ),
        "KVCache.attention": (partial(cache.attention, query), no_lengths),
        "attention_backward": (backward, set()),
        "varlen_attention_backward": (packed_backward, set()),
    }


GOOD_OPTIONS = {
    "mask": np.ones(7, bool),
    "bias": np.zeros(7, np.float32),
    "causal": "top_left",
    "window": (3, None),
    "kv_lengths": [7, 3],
    "scale": 0.5,
    "softcap": 3.0,
    "alibi_slopes": [0.5] * 4,
    "sinks": [0.0] * 4,
    "relative_bias": np.zeros((4, 5)),
    "dropout": 0.25,
    "seed": 7,
    "precision": "bfloat16",
}


def test_a_form_takes_its_options_and_names_the_one_that_it_does_not_take(good):
    assert set(AttentionOptions._fields) == set(GOOD_OPTIONS)
    for name, (call, refused) in forms(good).items():
        call(**{option: GOOD_OPTIONS[option] for option in GOOD_OPTIONS.keys() - refused - {"kv_lengths"}})
        for option in {*refused, "dropuot"}:
            with pytest.raises(TypeError) as caught:
                call(**{option: GOOD_OPTIONS.get(option)})
            said, _, taken = str(caught.value).partition("; its options are ")
            assert said == f"{name}() got an unexpected keyword argument {option!r}"
            expected = {*GOOD_OPTIONS} - refused - ({"kv_lengths"} if name == "paged_attention" else set())
            assert set(taken.split(", ")) == expected


def test_none_is_no_option(good):
    nothing = dict.fromkeys(GOOD_OPTIONS) | {"causal": False, "dropout": 0.0}
    for call, refused in forms(good).values():
        given = {option: nothing[option] for option in nothing.keys() - refused - {"kv_lengths", "causal"}}
        for one, other in zip(as_tuple(call(**given)), as_tuple(call()), strict=True):
            np.testing.assert_array_equal(one, other)


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def test_a_record_is_what_was_checked_and_cannot_change():
    problem = Problem(np.dtype(np.float32), (2,), (4, 2, 5, 7, 16, 8))
    record = checked(problem, causal="bottom_right", softcap=3, kv_lengths=[7, 3])
    assert (record.scale, record.softcap, record.causal) == (0.25, 3.0, "bottom_right")
    np.testing.assert_array_equal(record.kv_lengths, [7, 3])
    assert checked(problem) == no_options(16)
    with pytest.raises(AttributeError):
        record.softcap = 2.0
