# SPDX-License-Identifier: Apache-2.0
"""TextEncoder.encode and its neighbours: shapes, names, options, and the same bits in any batch."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.tiny_models import SENTENCES, build, write_json

from selfattn.text import TextEncoder

DIM = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder.from_pretrained(build(tmp_path_factory.mktemp("model")))


def with_prompts(directory: Path, **changes: object) -> TextEncoder:
    prompts = {"query": "she said that ", "none": ""}
    write_json(build(directory) / "config_sentence_transformers.json", {"prompts": prompts} | changes)
    return TextEncoder.from_pretrained(directory)


def test_one_text_gives_one_vector(model: TextEncoder) -> None:
    assert model.encode("cat").shape == (DIM,)


def test_many_texts_give_a_table_in_their_order(model: TextEncoder) -> None:
    table = model.encode(SENTENCES)
    assert (table.shape, table.dtype) == ((len(SENTENCES), DIM), np.float32)
    for row, sentence in zip(table, SENTENCES, strict=True):
        np.testing.assert_array_equal(row, model.encode(sentence))


def test_any_iterable_of_texts_is_taken(model: TextEncoder) -> None:
    expected = model.encode(["cat", "dog"])
    for inputs in (("cat", "dog"), iter(["cat", "dog"]), np.array(["cat", "dog"])):
        np.testing.assert_array_equal(model.encode(inputs), expected)


def test_no_texts_give_an_empty_table(model: TextEncoder) -> None:
    assert model.encode([]).shape == (0, DIM)
    assert model.encode([], truncate_dim=4).shape == (0, 4)
    assert model.encode([], output_value=None) == []


def test_the_empty_text_is_two_special_tokens(model: TextEncoder) -> None:
    features = model.encode("", output_value=None)
    assert [model.tokenizer.id_to_token(i) for i in features["input_ids"]] == ["[CLS]", "[SEP]"]
    assert np.linalg.norm(features["sentence_embedding"]) == pytest.approx(1)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("max_tokens", [1, 25, 4096])
def test_batches_change_no_bit(model: TextEncoder, batch_size: int, max_tokens: int) -> None:
    alone = [model.encode(sentence) for sentence in SENTENCES]
    for order in (np.arange(len(SENTENCES)), np.random.default_rng(1).permutation(len(SENTENCES))):
        texts = [SENTENCES[i] for i in order]
        table = model.encode(texts, batch_size=batch_size, max_tokens_per_batch=max_tokens)
        np.testing.assert_array_equal(table, np.array(alone)[order])


def test_threads_change_no_bit(model: TextEncoder) -> None:
    expected = model.encode(SENTENCES * 5, num_threads=1)
    for threads in (2, 3, 8):
        np.testing.assert_array_equal(model.encode(SENTENCES * 5, num_threads=threads), expected)


def test_concurrent_calls_change_no_bit(model: TextEncoder) -> None:
    expected = model.encode(SENTENCES)
    with ThreadPoolExecutor(4) as pool:
        for table in pool.map(lambda _: model.encode(SENTENCES), range(40)):
            np.testing.assert_array_equal(table, expected)


def test_a_text_without_any_token_is_zero(tmp_path: Path) -> None:
    path = build(tmp_path) / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    model = TextEncoder.from_pretrained(tmp_path)
    table = model.encode(["", "cat", ""])
    np.testing.assert_array_equal(table[::2], 0)
    np.testing.assert_array_equal(table[1], model.encode("cat"))
    assert model.encode("", output_value="token_embeddings").shape == (0, DIM)


def test_more_texts_than_a_window_keep_their_order(
    model: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.encode(SENTENCES * 3)
    monkeypatch.setattr("selfattn.text.text_encoder.WINDOW", 4)
    np.testing.assert_array_equal(model.encode(SENTENCES * 3), expected)


def test_output_values(model: TextEncoder) -> None:
    tokens = model.encode(SENTENCES, output_value="token_embeddings")
    features = model.encode(SENTENCES, output_value=None)
    table = model.encode(SENTENCES)
    assert len(tokens) == len(features) == len(SENTENCES)
    for rows, each, embedding in zip(tokens, features, table, strict=True):
        assert rows.shape == (len(each["input_ids"]), DIM)
        np.testing.assert_array_equal(rows, each["token_embeddings"])
        np.testing.assert_array_equal(embedding, each["sentence_embedding"])
    assert model.encode("cat", output_value="token_embeddings").shape == (3, DIM)
    with pytest.raises(ValueError, match="output_value='tokens' is not one of 'sentence_embedding'"):
        model.encode("cat", output_value="tokens")


def test_without_conversion_a_list_of_vectors(model: TextEncoder) -> None:
    vectors = model.encode(SENTENCES, convert_to_numpy=False)
    assert isinstance(vectors, list)
    np.testing.assert_array_equal(np.array(vectors), model.encode(SENTENCES))


def test_truncated_dimensions_then_normalized(model: TextEncoder) -> None:
    whole = model.encode(SENTENCES)
    np.testing.assert_array_equal(model.encode(SENTENCES, truncate_dim=4), whole[:, :4])
    short = model.encode(SENTENCES, truncate_dim=4, normalize_embeddings=True)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-6)
    with pytest.raises(ValueError, match="truncate_dim=17 is more than this model's 16"):
        model.encode("cat", truncate_dim=17)


def test_truncate_dim_of_the_configuration(tmp_path: Path) -> None:
    model = with_prompts(tmp_path, truncate_dim=5)
    assert model.embedding_dim == model.get_sentence_embedding_dimension() == 5
    assert model.encode(["cat"]).shape == (1, 5)
    assert model.encode(["cat"], truncate_dim=7).shape == (1, 7)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["cat", 3], r"inputs\[1\] is a int"),
        (["cat", None], r"inputs\[1\] is a NoneType"),
        ([b"cat"], r"inputs\[0\] is a bytes"),
        ([["cat", "dog"]], r"inputs\[0\] is a list"),
        (None, "inputs is a NoneType"),
        (7, "inputs is a int"),
        (b"cat", "inputs is a bytes"),
        ({"cat": 1}, "inputs is a dict"),
    ],
)
def test_what_is_not_text_is_a_type_error(model: TextEncoder, inputs: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        model.encode(inputs)


def test_a_lone_surrogate_is_an_error_that_names_it(model: TextEncoder) -> None:
    with pytest.raises(ValueError, match=r"inputs\[1\] is not valid Unicode: .* at character 2"):
        model.encode(["cat", "ab\ud800"])


def test_an_unknown_keyword_is_named_with_the_known_ones(model: TextEncoder) -> None:
    with pytest.raises(
        TypeError,
        match=r"no argument padding; it takes inputs, sentences, .*max_tokens_per_batch",
    ):
        model.encode("cat", padding="cpu")


@pytest.mark.parametrize("name", ["batch_size", "max_tokens_per_batch", "truncate_dim"])
def test_sizes_must_be_positive_integers(model: TextEncoder, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 is less than 1"):
        model.encode("cat", **{name: 0})
    with pytest.raises(TypeError, match=f"{name} is a float"):
        model.encode("cat", **{name: 2.0})


def test_progress_is_shown_on_request(model: TextEncoder, capsys: pytest.CaptureFixture[str]) -> None:
    model.encode(SENTENCES, show_progress_bar=True)
    shown = capsys.readouterr()
    assert f"{len(SENTENCES)}/{len(SENTENCES)}" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    ("terminal", "texts", "expected"), [(True, 7, True), (True, 1, False), (False, 7, False)]
)
def test_progress_by_default(
    model: TextEncoder, monkeypatch: pytest.MonkeyPatch, terminal: bool, texts: int, expected: bool
) -> None:
    written: list[str] = []
    stderr = SimpleNamespace(
        isatty=lambda: terminal, write=written.append, flush=lambda: None, encoding="utf-8"
    )
    monkeypatch.setattr(sys, "stderr", stderr)
    model.encode(SENTENCES[:texts], batch_size=3)
    assert bool(written) is expected


def test_repr_is_one_line(model: TextEncoder) -> None:
    assert repr(model).endswith(", bert, 2 layers, 16d, mean -> normalize)")
    assert "\n" not in repr(model)


def test_attention_map(model: TextEncoder) -> None:
    picture = model.attention_map("The dogs ran")
    assert picture.tokens == ["[CLS]", "the", "dog", "##s", "ran", "[SEP]"]
    assert picture.word_ids == [None, 0, 1, 1, 2, None]
    assert picture.weights.shape == (2, 2, 6, 6)
    np.testing.assert_allclose(picture.weights.sum(axis=-1), 1, atol=1e-6)
    assert model.attention_map("cat " * 99).weights.shape == (2, 2, 32, 32)
    with pytest.raises(TypeError, match="sentence is a list"):
        model.attention_map(["cat"])


def test_attention_map_shows_what_the_layers_compute(model: TextEncoder) -> None:
    """The first layer's context, rebuilt from the weights that are shown, gives the first layer's output."""
    encoding = model.tokenizer.encode("The pizza came out of the oven")
    weights = model.attention_map("The pizza came out of the oven").weights[0]
    network = model.network
    x, after = network.encoder.hidden_states(
        network.embed(np.array(encoding.ids), np.array([0, len(encoding)]))
    )[:2]
    layer = network.encoder.layers[0]
    value = (x @ layer.attention.value_weight + layer.attention.value_bias).reshape(len(x), 2, 8)
    joined = np.einsum("hqk,khd->qhd", weights, value).reshape(len(x), 16)
    x = layer.attention_norm(x + joined @ layer.attention.output_weight + layer.attention.output_bias)
    np.testing.assert_allclose(layer.feed_forward_norm(x + layer.feed_forward(x)), after, rtol=0, atol=1e-5)
