# SPDX-License-Identifier: Apache-2.0
"""modules.json: what follows the encoder, up to the embedding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_models import (
    SENTENCES,
    add_dense,
    build,
    load,
    write_json,
)

from selfattn.text import UnsupportedArchitectureError, WeightsMismatchError


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            ["Transformer", "Pooling", "CNN"],
            "the module 'CNN' is not supported, only Transformer, Pooling, Dense",
        ),
        (["Transformer", "Normalize"], "the order Transformer, Normalize is not supported"),
        (["Pooling"], "the order Pooling is not supported"),
        (["Transformer", "Pooling", "Pooling"], "the order Transformer, Pooling, Pooling is not supported"),
        ([], r"the order \(none\) is not supported"),
    ],
)
def test_modules_that_are_not_supported(directory: Path, modules: list[str], message: str) -> None:
    write_json(directory / "modules.json", [{"type": f"x.{kind}", "path": "1_Pooling"} for kind in modules])
    with pytest.raises(UnsupportedArchitectureError, match=f"modules.json: {message}"):
        load(directory)


@pytest.mark.parametrize("entry", [3, {"type": "x.Transformer"}, {"type": 1, "path": ""}, {"path": ""}])
def test_modules_without_a_type_or_a_path(directory: Path, entry: Any) -> None:
    write_json(directory / "modules.json", [entry])
    with pytest.raises(ValueError, match=r"modules\.json: the entry .* has no type and path"):
        load(directory)


@pytest.mark.parametrize("path", ["../other", "/etc"])
def test_modules_outside_of_the_directory(directory: Path, path: str) -> None:
    write_json(
        directory / "modules.json",
        [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": path}],
    )
    with pytest.raises(ValueError, match=r"modules\.json: the path .* leads out of the model's directory"):
        load(directory)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pooling_mode": "median"}, "the pooling mode 'median' is not one of cls, max, mean"),
        ({"pooling_mode": ["mean", 3]}, "the pooling mode 3 is not one of"),
        ({"pooling_mode": {"a": 1}}, "the pooling mode {'a': 1} is not one of"),
        ({"word_embedding_dimension": 384}, "word_embedding_dimension=384 does not match the encoder's 16"),
    ],
)
def test_pooling_that_makes_no_sense(directory: Path, config: dict[str, Any], message: str) -> None:
    write_json(directory / "1_Pooling" / "config.json", config)
    with pytest.raises(ValueError, match=f"config.json: {message}"):
        load(directory)


def test_dense_modules_that_do_not_fit(directory: Path) -> None:
    weight = np.zeros((3, 16), np.float32)
    add_dense(directory, {"linear.weight": weight})
    with pytest.raises(
        WeightsMismatchError, match=r"3_Dense/model\.safetensors lacks 1 of 2 tensors, first 'linear\.bias'"
    ):
        load(directory)
    build(directory)
    add_dense(directory, {"linear.weight": weight}, bias=False, in_features=8)
    with pytest.raises(ValueError, match="in_features=8 does not match the 16"):
        load(directory)
    build(directory)
    add_dense(
        directory,
        {"linear.weight": weight},
        bias=False,
        activation_function="torch.nn.modules.activation.Mish",
    )
    with pytest.raises(
        UnsupportedArchitectureError, match=r"3_Dense/config\.json: .*Mish.* only the activations Identity"
    ):
        load(directory)


def test_without_modules_the_mean_is_taken(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    (directory / "modules.json").unlink()
    model = load(directory)
    assert "describes no pooling" in caplog.text
    assert repr(model).endswith("16d, mean)")
    rows = model.encode("cat", output_value="token_embeddings")
    np.testing.assert_allclose(model.encode("cat"), rows.mean(axis=0), rtol=0, atol=1e-6)


def test_a_dense_module(directory: Path, rng: np.random.Generator) -> None:
    weight, bias = rng.standard_normal((3, 16)).astype(np.float32), rng.standard_normal(3).astype(np.float32)
    pooled = load(directory).encode(SENTENCES)
    add_dense(directory, {"linear.weight": weight, "linear.bias": bias})
    model = load(directory)
    assert model.embedding_dim == 3
    expected = np.tanh(pooled.astype(np.float64) @ weight.T + bias)
    np.testing.assert_allclose(model.encode(SENTENCES), expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(model.encode(SENTENCES)[2], model.encode(SENTENCES[2]))
