# SPDX-License-Identifier: Apache-2.0
"""The HTML page: what it stores, how large it may get, and that no token can break out of it."""

import base64
import html
import json
import re

import numpy as np
import pytest

from selfattn.view import AttentionMap, page

EVIL = ["</script><b>x", "<!--", "{{style}}", "\u2028&amp;\"'", "<script>"]


def softmax_like(rng, *shape):
    return rng.dirichlet(np.full(shape[-1], 0.1), size=shape[:-1]).astype(np.float32)


def stored(text):
    """The page's data as a reader of the page sees it."""
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(block)


def unpacked(data, length):
    """(layers, heads, L, L) weights out of the page's data."""
    shape = (len(data["layers"]), data["heads"], length)
    scale = np.frombuffer(base64.b64decode(data["scale"]), "<f4").reshape(*shape, 1)
    values = scale * np.frombuffer(base64.b64decode(data["weights"]), np.uint8).reshape(
        *shape, data["perRow"]
    )
    if "columns" not in data:
        return values
    kind = "u1" if length <= 256 else "<u2"
    columns = np.frombuffer(base64.b64decode(data["columns"]), kind).reshape(values.shape)
    whole = np.zeros((*shape, length), np.float32)
    np.put_along_axis(whole, columns.astype(np.int64), values, axis=-1)
    return whole


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def attention(rng):
    return AttentionMap(EVIL, softmax_like(rng, 2, 3, 5, 5), words=[None, 0, 0, 1, None], title="<b>& model")


def test_weights_survive_within_half_a_step_of_their_row(rng):
    weights = softmax_like(rng, 3, 4, 50, 50)
    weights[0, 0, 0] = 0
    weights[0, 0, 1] *= 1e-6
    data = stored(AttentionMap([str(i) for i in range(50)], weights).to_html())
    error = np.abs(unpacked(data, 50) - weights)
    assert (error <= weights.max(-1, keepdims=True) / 255 * 0.501).all()
    assert error.max() > 0
    assert not unpacked(data, 50)[0, 0, 0].any()


def test_tokens_cannot_break_out(attention):
    text = attention.to_html()
    data = stored(text)
    assert data["tokens"] == EVIL
    assert data["words"] == [None, 0, 0, 1, None]
    assert data["title"] == "<b>& model"
    assert text.lower().count("<script") == 2
    assert text.lower().count("</script>") == 2
    assert "<b>&" not in text
    assert "<b>x" not in text


def test_nothing_is_left_to_fill_in(attention):
    assert set(re.findall(r"\{\{\w+\}\}", attention.to_html())) == {"{{style}}"}  # the token of that name


def test_the_page_needs_no_network(attention):
    text = attention.to_html()
    assert not re.search(r"https?://", text)
    assert not re.search(r"\b(src|href|@import|url\()\s*=?", text)


def test_the_page_is_ascii_in_its_data_and_written_as_utf8(attention, tmp_path):
    text = attention.to_html(tmp_path / "map.html")
    assert (tmp_path / "map.html").read_text(encoding="utf-8") == text
    assert '<meta charset="utf-8">' in text


def test_notebooks_get_the_page_in_a_frame_of_its_own(attention):
    frame = attention._repr_html_()
    (document,) = re.findall(r'srcdoc="([^"]*)"', frame)
    assert html.unescape(document) == attention.to_html()
    assert 'sandbox="allow-scripts"' in frame


def test_what_is_shown_first(attention):
    assert stored(attention.to_html())["start"] == {"layer": None, "head": None, "token": None}
    start = stored(attention.to_html(layer=-1, head=1, word="<!--"))["start"]
    assert start == {"layer": 1, "head": 1, "token": 1}
    with pytest.raises(IndexError, match="head=3 is out of range: there are 3"):
        attention.to_html(head=3)
    with pytest.raises(ValueError, match="word='it' is not among"):
        attention.to_html(word="it")


def test_a_small_map_is_kept_whole(rng):
    data = stored(AttentionMap(list("abcd"), softmax_like(rng, 2, 2, 4, 4)).to_html())
    assert data["perRow"] == 4
    assert data["layers"] == [0, 1]
    assert "columns" not in data


def test_a_long_map_keeps_the_strongest_of_each_row(rng):
    weights = softmax_like(rng, 6, 12, 200, 200)
    text = AttentionMap([f"token{i}" for i in range(200)], weights).to_html()
    assert len(text.encode()) <= 2_000_000
    data = stored(text)
    kept = unpacked(data, 200)
    assert data["layers"] == list(range(6))
    assert 20 < data["perRow"] < 200
    assert data["coverage"] == pytest.approx(kept.sum() / weights.sum(), rel=1e-3)
    strongest = np.sort(weights, -1)[..., -data["perRow"] :].sum(-1)
    np.testing.assert_allclose(kept.sum(-1), strongest, rtol=0.01, atol=1e-3)


def test_a_huge_map_leaves_out_layers_but_not_the_one_asked_for(rng):
    weights = np.broadcast_to(softmax_like(rng, 1, 1, 300, 300), (24, 32, 300, 300))
    text = AttentionMap(["x" * 50] * 300, weights).to_html(layer=7)
    assert len(text.encode()) <= 2_000_000
    data = stored(text)
    assert unpacked(data, 300).sum(-1).max() <= 1.001
    assert data["perRow"] >= page.MIN_PER_ROW
    assert data["allLayers"] == 24
    assert 1 < len(data["layers"]) < 24
    assert data["layers"] == sorted(data["layers"])
    assert {0, 7, 23} <= set(data["layers"])


def test_what_fits_nowhere_is_an_error():
    with pytest.raises(ValueError, match="8 heads of 10 tokens don't fit"):
        page.encode(np.ones((2, 8, 10, 10), np.float32), budget=1300)


@pytest.mark.parametrize("budget", [3_000, 5_000, 20_000, 60_000])
def test_encode_keeps_to_its_budget(rng, budget):
    fields = page.encode(softmax_like(rng, 4, 4, 40, 40), budget)
    assert len(json.dumps(fields)) <= budget
