# SPDX-License-Identifier: Apache-2.0
"""AttentionMap: merging word pieces, choosing layers and heads, and what it refuses."""

import builtins

import numpy as np
import pytest

from selfattn.view import AttentionMap

TOKENS = ["[CLS]", "un", "##bak", "##ed", "pizza", "[SEP]"]
WORDS = [None, 0, 0, 0, 1, None]


@pytest.fixture
def weights():
    rng = np.random.default_rng(3)
    return rng.dirichlet(np.ones(6), size=(2, 3, 6)).astype(np.float32)  # (layers, heads, 6, 6)


@pytest.fixture
def attention(weights):
    return AttentionMap(TOKENS, weights, words=WORDS, title="a model")


def test_words_sums_to_and_averages_from_the_pieces(attention, weights):
    merged = attention.words()
    assert merged.tokens == ["[CLS]", "unbaked", "pizza", "[SEP]"]
    assert merged.word_ids == [None, 0, 1, None]
    assert merged.title == "a model"
    expected = weights[1, 2, 1:4, 1:4].sum() / 3
    np.testing.assert_allclose(merged.weights[1, 2, 1, 1], expected, rtol=1e-6)
    np.testing.assert_allclose(merged.weights[:, :, 2, 1], weights[:, :, 4, 1:4].sum(-1), rtol=1e-6)
    np.testing.assert_allclose(merged.weights[:, :, 1, 2], weights[:, :, 1:4, 4].mean(-1), rtol=1e-6)
    np.testing.assert_allclose(merged.weights.sum(-1), 1, rtol=1e-6)


def test_words_without_special_tokens_is_not_renormalised(attention):
    whole, part = attention.words(), attention.words(special=False)
    assert part.tokens == ["unbaked", "pizza"]
    np.testing.assert_array_equal(part.weights, whole.weights[:, :, 1:3, 1:3])
    assert (part.weights.sum(-1) < 1).all()


def test_words_of_words_changes_nothing(attention):
    once = attention.words()
    twice = once.words()
    assert twice.tokens == once.tokens
    np.testing.assert_array_equal(twice.weights, once.weights)


def test_equal_numbers_apart_from_each_other_are_different_words(weights):
    apart = AttentionMap(list("abcdef"), weights, words=[0, 1, 0, 0, None, None]).words()
    assert apart.tokens == ["a", "b", "cd", "e", "f"]


def test_without_words_every_token_is_one(weights):
    plain = AttentionMap(TOKENS, weights)
    np.testing.assert_array_equal(plain.words(special=False).weights, weights)


def test_only_special_tokens(weights):
    nothing = AttentionMap(["[CLS]", "[SEP]"], weights[:, :, :2, :2], words=[None, None])
    assert nothing.words().tokens == ["[CLS]", "[SEP]"]
    with pytest.raises(ValueError, match="all 2 tokens are special"):
        nothing.words(special=False)


def test_select(attention, weights):
    np.testing.assert_array_equal(attention.select(1, 2), weights[1, 2])
    np.testing.assert_array_equal(attention.select(-1, -3), weights[1, 0])
    np.testing.assert_allclose(attention.select(), weights.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(attention.select(layer=0), weights[0].mean(0), rtol=1e-6)
    np.testing.assert_allclose(attention.select([0, 1], [0, 2]), weights[:, [0, 2]].mean((0, 1)), rtol=1e-6)


@pytest.mark.parametrize(
    "choice", [{"layer": 2}, {"layer": -3}, {"layer": [0, 2]}, {"head": 3}, {"head": -4}]
)
def test_select_out_of_range(attention, choice):
    (name, value), *_ = choice.items()
    wrong = value[-1] if isinstance(value, list) else value
    count = {"layer": 2, "head": 3}[name]
    with pytest.raises(IndexError, match=rf"{name}={wrong} .*there are {count}"):
        attention.select(**choice)


def test_select_nothing_or_nonsense(attention):
    with pytest.raises(ValueError, match="layer=\\[\\] chooses nothing"):
        attention.select(layer=[])
    with pytest.raises(TypeError):
        attention.select(layer=0.5)


@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (2, 3, 5, 5), (3, 6, 6), (0, 3, 6, 6), (2, 0, 6, 6)])
def test_shapes_that_do_not_agree(shape):
    with pytest.raises(ValueError, match=r"weights has shape .*for 6 tokens"):
        AttentionMap(TOKENS, np.zeros(shape, np.float32))


def test_no_tokens():
    with pytest.raises(ValueError, match="for 0 tokens"):
        AttentionMap([], np.zeros((1, 1, 0, 0)))


def test_words_of_the_wrong_length(weights):
    with pytest.raises(ValueError, match="words has 2 entries, expected one for each of the 6"):
        AttentionMap(TOKENS, weights, words=[0, 1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1])
def test_weights_that_are_none(weights, value):
    weights[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="finite and not negative"):
        AttentionMap(TOKENS, weights)


def test_find(attention):
    assert attention.find("PIZZA") == 4
    assert attention.find(-1) == 5
    with pytest.raises(ValueError, match="word='oven' is not among the 6 tokens"):
        attention.find("oven")
    with pytest.raises(IndexError, match="word=6 is out of range"):
        attention.find(6)


def test_labels_drop_the_marks_of_tokenizers():
    tokens = ["##ing", "\u0120the", "\u2581cat", "##", "[CLS]"]
    labels = AttentionMap(tokens, np.ones((1, 1, 5, 5)), words=[0, 1, 2, 3, None]).labels()
    assert labels == ["ing", "the", "cat", "##", "[CLS]"]


def test_plot_draws_the_chosen_matrix(attention, weights):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = attention.plot(layer=1, head=2)
    np.testing.assert_array_equal(axes.images[0].get_array(), weights[1, 2])
    assert [tick.get_text() for tick in axes.get_yticklabels()] == attention.labels()
    _, given = pyplot.subplots()
    assert attention.plot(given, vmax=1.0) is given
    assert given.images[0].get_clim() == (0, 1)
    pyplot.close("all")


def test_plot_with_a_token_that_looks_like_mathematics(weights):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = AttentionMap(["$", "$x^", "a$b$", "_", "\\", "^"], weights).plot()
    axes.figure.canvas.draw()  # would raise for broken mathematics
    pyplot.close("all")


def test_plot_without_matplotlib(attention, monkeypatch):
    real = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match=r"pip install 'selfattn\[view\]'"):
        attention.plot()
