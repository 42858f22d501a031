# SPDX-License-Identifier: Apache-2.0
"""The network of a text encoder as a layer; a model with other weights."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from support.tiny_models import (
    FAMILIES,
    SENTENCES,
    build,
    load,
)

from selfattn import TextEncoder
from selfattn.train import flatten, unflatten

IDS, CU_SEQLENS = np.array([2, 9, 7, 3, 2, 3, 2, 9, 9, 5, 11, 3]), np.array([0, 4, 6, 6, 12])
TABLE = "embeddings.word_embeddings.weight"


def moved(model: TextEncoder, rng: np.random.Generator) -> TextEncoder:
    """The model with every weight a little elsewhere."""
    weights = model.network.weights()
    flat = {
        name: array + 0.1 * rng.standard_normal(array.shape, dtype=np.float32)
        for name, array in flatten(weights).items()
    }
    return model.replace(unflatten(flat, weights))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return build(tmp_path / "model", request.param)


# ---- the network ----


def test_forward_gives_the_bits_of_the_call(family: Path) -> None:
    network = load(family).network
    expected = network(IDS, CU_SEQLENS)
    for recompute in (False, True):
        np.testing.assert_array_equal(network.forward(IDS, CU_SEQLENS, recompute=recompute)[0], expected)
    for first, last in itertools.pairwise(CU_SEQLENS):
        np.testing.assert_array_equal(network(IDS[first:last], [0, last - first]), expected[first:last])


def test_every_gradient_says_how_fast_the_loss_changes(family: Path, rng: np.random.Generator) -> None:
    network = load(family).network
    weights = network.weights()
    grad_y = rng.standard_normal((len(IDS), 16)).astype(np.float32)
    _, saved = network.forward(IDS, CU_SEQLENS)
    grads = flatten(network.backward(saved, grad_y))
    flat = flatten(weights)
    assert {name: grad.shape for name, grad in grads.items()} == {n: w.shape for n, w in flat.items()}

    def loss_at(name: str, step: float) -> float:
        array = flat[name] + np.float32(step / length) * grads[name]
        y = network.replace(unflatten(flat | {name: array}, weights))(IDS, CU_SEQLENS)
        return float((grad_y.astype(np.float64) * y).sum())

    for name in ("word_table", "position_table", "norm.bias", "encoder.layers.0.attention.value_weight"):
        length = float(np.linalg.norm(grads[name].astype(np.float64)))
        assert (loss_at(name, 0.01) - loss_at(name, -0.01)) / 0.02 == pytest.approx(length, rel=0.03), name
    if network.type_row is not None:
        np.testing.assert_allclose(grads["type_row"], grads["position_table"].sum(axis=0), rtol=0, atol=1e-4)


def test_gradients_are_the_same_on_any_threads_and_computed_again(family: Path) -> None:
    network = load(family).network
    y, saved = network.forward(IDS, CU_SEQLENS, num_threads=2)
    expected = flatten(network.backward(saved, y, num_threads=2))
    _, saved = network.forward(IDS, CU_SEQLENS, num_threads=1, recompute=True)
    for name, grad in flatten(network.backward(saved, y, num_threads=1)).items():
        np.testing.assert_array_equal(grad, expected[name])


def test_words_that_are_not_there_have_no_gradient(directory: Path) -> None:
    network = load(directory).network
    y, saved = network.forward(IDS, CU_SEQLENS)
    grads = network.backward(saved, y)
    assert np.flatnonzero(grads["word_table"].any(axis=1)).tolist() == sorted(set(IDS))
    assert np.flatnonzero(grads["position_table"].any(axis=1)).tolist() == list(range(6))
    empty, saved = network.forward([], [0, 0])
    assert empty.shape == (0, 16)
    assert not any(grad.any() for grad in flatten(network.backward(saved, empty)).values())


def test_what_is_no_token_number_is_refused(directory: Path) -> None:
    network = load(directory).network
    vocabulary = len(network.word_table)
    for call in (network, network.forward, network.embed):
        for bad in (-1, vocabulary):
            with pytest.raises(ValueError, match=rf"ids holds {bad}; the vocabulary has the tokens 0 to"):
                call([2, bad, 3], [0, 3])
        with pytest.raises(TypeError, match="ids has dtype float64; it must be integers"):
            call([2.0], [0, 1])
        with pytest.raises(ValueError, match=r"ids has shape \(1, 2\); it needs \(tokens,\)"):
            call([[2, 3]], [0, 2])
        with pytest.raises(ValueError, match="sequence 1 has 41 tokens; this network has 40 positions"):
            call([2] * 44, [0, 3, 44])
        with pytest.raises(ValueError, match="cu_seqlens begins at 0 and ends at 2"):
            call([2, 3, 4], [0, 2])


def test_tables_of_another_width_are_refused(directory: Path) -> None:
    network = load(directory).network
    fields = {"norm": network.norm, "encoder": network.encoder, "type_row": None}
    tables = {"word_table": np.ones((9, 16)), "position_table": np.ones((9, 15))}
    with pytest.raises(ValueError, match="d_model differs: 16 in word_table, 15 in position_table"):
        type(network)(**tables, **fields)
    with pytest.raises(ValueError, match="type_row has 15 values"):
        type(network)(np.ones((9, 16)), np.ones((9, 16)), np.ones(15), network.norm, network.encoder)


# ---- a model with other weights ----


def test_a_model_with_other_weights(directory: Path, rng: np.random.Generator) -> None:
    model = load(directory)
    before = model.encode(SENTENCES)
    other = moved(model, rng)
    other.max_seq_length = 3
    assert repr(other) == repr(model)
    assert not np.array_equal(other.encode("cat"), model.encode("cat"))
    np.testing.assert_array_equal(model.encode(SENTENCES), before)
    assert model.truncated == 0
    same = other.replace(model.network.weights())
    assert same.max_seq_length == 3
    same.max_seq_length = model.max_seq_length
    np.testing.assert_array_equal(same.encode(SENTENCES), before)
    weights = model.network.weights()
    weights["word_table"] = weights["word_table"][1:]
    with pytest.raises(ValueError, match=r"word_table has shape \(\d+, 16\); it replaces one of shape"):
        model.replace(weights)
