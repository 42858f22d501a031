# SPDX-License-Identifier: Apache-2.0
"""Trees of arrays: names and back, and errors that name the entry."""

import numpy as np
import pytest

from selfattn.train import flatten, unflatten

A, B, C = np.arange(3.0), np.ones((2, 2)), np.zeros(())
TREE = {"layers": [{"norm": {"weight": A, "bias": None}}, (B,)], "final_norm": None, "empty": {}, "scale": C}


def test_names_are_dotted_and_in_the_tree_s_order():
    flat = flatten(TREE)
    assert list(flat) == ["layers.0.norm.weight", "layers.1.0", "scale"]
    assert flat["layers.0.norm.weight"] is A
    assert flat["layers.1.0"] is B


def test_the_structure_comes_back():
    other = {name: array + 1 for name, array in flatten(TREE).items()}
    built = unflatten(other, TREE)
    assert list(built) == list(TREE)
    assert built["layers"][0]["norm"] == {"weight": other["layers.0.norm.weight"], "bias": None}
    assert type(built["layers"][1]) is tuple
    assert (built["final_norm"], built["empty"]) == (None, {})
    assert TREE["scale"] is C


@pytest.mark.parametrize("tree", [A, [A, B], {}, None, {"a.b": A, "a": {"c": B}}])
def test_any_tree_comes_back(tree):
    assert str(unflatten(flatten(tree), tree)) == str(tree)


def test_a_name_stands_for_one_array():
    with pytest.raises(ValueError, match=r"two entries are named a\.b"):
        flatten({"a.b": A, "a": {"b": B}})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"layers": [{"weight": 1.0}]}, r"the entry layers\.0\.weight is a float"),
        ({"a": "text"}, r"the entry a is a str"),
        ({"a": np.float32(1)}, r"the entry a is a float32"),
        (3, r"the tree is a int"),
    ],
)
def test_what_is_not_an_array_is_named(tree, message):
    with pytest.raises(TypeError, match=message):
        flatten(tree)


def test_missing_and_surplus_names():
    like = {"a": A, "b": {"c": B, "d": C}}
    with pytest.raises(ValueError, match=r"flat lacks 2 of like's 3 entries, first b\.c"):
        unflatten({"a": A}, like)
    with pytest.raises(ValueError, match=r"flat has 1 entries that like does not have, first b\.e"):
        unflatten({**flatten(like), "b.e": A}, like)
