# SPDX-License-Identifier: Apache-2.0
"""RelativeBias: T5's buckets, the numbers by distance, and the gradient of the table."""

import numpy as np
import pytest
from support.layer_makers import same_bits

import selfattn
from selfattn import reference
from selfattn.layers import RelativeBias
from selfattn.layers.relative_bias import bucket

SHAPES = [(True, 32, 128), (False, 32, 128), (True, 32, 32), (True, 64, 256), (False, 16, 20), (True, 8, 100)]


def random_bias(rng, num_buckets=32, num_heads=3, **how):
    return RelativeBias(rng.standard_normal((num_buckets, num_heads)), **how)


@pytest.mark.parametrize(("bidirectional", "num_buckets", "max_distance"), SHAPES)
def test_buckets_are_those_of_the_specification(bidirectional, num_buckets, max_distance):
    distance = np.arange(-700, 701)
    expected = reference.relative_buckets(distance, num_buckets, max_distance, bidirectional)
    found = [bucket(d, num_buckets, max_distance, bidirectional) for d in distance.tolist()]
    assert found == expected.tolist()
    cut = np.clip(distance, -max_distance, max_distance)  # what the operator does
    assert found == [bucket(d, num_buckets, max_distance, bidirectional) for d in cut.tolist()]


def test_the_buckets_of_t5():
    """The distance at which each bucket begins, as transformers has it."""
    firsts = {}
    for distance in range(701):
        firsts.setdefault(bucket(-distance, 32, 128, True), distance)
    assert list(firsts.values()) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    assert [bucket(d, 32, 128, True) for d in (1, 7, 8, 500)] == [17, 23, 24, 31]
    firsts = {}
    for distance in range(701):
        firsts.setdefault(bucket(-distance, 32, 128, False), distance)
    assert list(firsts.values())[15:] == [15, 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
    assert {bucket(d, 32, 128, False) for d in range(1, 200)} == {0}


def test_numbers_by_distance_are_rows_of_the_table(rng):
    bias = random_bias(rng, max_distance=20)
    by_distance = bias.by_distance()
    assert (by_distance.shape, by_distance.dtype) == ((3, 41), np.float64)
    assert not by_distance.flags.writeable
    assert bias.by_distance() is by_distance
    for distance in range(-20, 21):
        row = bias.table[bucket(distance, 32, 20, True)]
        np.testing.assert_array_equal(by_distance[:, 20 + distance], row)


def test_the_operator_takes_it(rng):
    bias = random_bias(rng, max_distance=20)
    query, key, value = rng.standard_normal((3, 3, 60, 8)).astype(np.float32)
    out = selfattn.attention(query, key, value, relative_bias=bias.by_distance())
    dense = reference.relative_bias(bias, 60).astype(np.float32)
    np.testing.assert_allclose(out, selfattn.attention(query, key, value, bias=dense), rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_row_is_the_sum_over_its_distances(rng):
    bias = random_bias(rng, num_buckets=8, max_distance=9)
    grad = rng.standard_normal(bias.by_distance().shape)
    (found,) = bias.backward(grad).values()
    expected = np.zeros((8, 3))
    for i, distance in enumerate(range(-9, 10)):
        expected[bucket(distance, 8, 9, True)] += grad[:, i]
    same_bits(found, expected.astype(np.float32))


def test_a_table_replaced_is_another_bias(rng):
    bias, other = random_bias(rng, max_distance=40, bidirectional=False), random_bias(rng)
    replaced = bias.replace(other.weights())
    same_bits(replaced.table, other.table)
    assert (replaced.max_distance, replaced.bidirectional) == (40, False)
    assert np.abs(replaced.by_distance() - bias.by_distance()).max() > 0.1


BAD = {
    "rank": (np.zeros(4), {}, ValueError, r"table has shape \(4,\)"),
    "dtype": (np.zeros((4, 2), int), {}, TypeError, "table has dtype int64"),
    "nan": (np.full((4, 2), np.nan), {}, ValueError, "table holds 8 NaN"),
    "buckets": (
        np.zeros((6, 2)),
        {},
        ValueError,
        "table has 6 buckets; their number must be a multiple of 4",
    ),
    "odd": (np.zeros((3, 2)), {"bidirectional": False}, ValueError, "a multiple of 2"),
    "near": (np.zeros((32, 2)), {"max_distance": 8}, ValueError, "max_distance=8 must be more than 8"),
    "float": (np.zeros((32, 2)), {"max_distance": 8.0}, TypeError, "max_distance"),
    "flag": (np.zeros((32, 2)), {"bidirectional": 1}, TypeError, "bidirectional=1 must be True or False"),
}


@pytest.mark.parametrize("name", BAD)
def test_arguments_that_are_refused(name):
    table, how, error, message = BAD[name]
    with pytest.raises(error, match=message):
        RelativeBias(table, **how)


def test_gradients_that_do_not_fit(rng):
    with pytest.raises(
        ValueError, match=r"grad_by_distance has shape \(3, 256\); by_distance\(\) has \(3, 257\)"
    ):
        random_bias(rng).backward(np.zeros((3, 256)))
