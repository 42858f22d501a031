# SPDX-License-Identifier: Apache-2.0
"""The self-contained HTML page of an attention map.

The page is page.html with page.css, page.js and the data put into it. The data is JSON; in it the weights are
rows of unsigned bytes in base64, each row with its own scale: weight = byte * scale[row], off by at most half
a scale, that is 0.2 % of the row's largest weight.
"""

from __future__ import annotations

import base64
import html
import json
import re
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE_BYTES = 2_000_000
SCRIPTS = ("numbers.js", "sentence.js", "matrix.js", "heads.js", "page.js")  # one program, in this order
MIN_PER_ROW = 8  # fewer kept weights than this per row say too little: leave out layers instead


def render(
    labels: list[str],
    word_ids: list[int | None],
    weights: NDArray[np.float32],
    *,
    title: str,
    start: dict[str, int | None],
) -> str:
    """The page as text. ``start`` is what it shows first: layer, head, token; None is the page's choice."""
    page = _template("page.html")
    parts = {
        "style": _template("page.css"),
        "script": "\n".join(map(_template, SCRIPTS)),
        "title": html.escape(title),
    }
    text = {"title": title, "tokens": labels, "words": word_ids, "start": start}
    fixed = sum(len(part.encode()) for part in (page, *parts.values(), _json(text)))
    parts["data"] = _json({**text, **encode(weights, PAGE_BYTES - fixed, start["layer"])})
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)


def _json(data: dict[str, Any]) -> str:
    """ASCII; "<" only occurs in strings, where \\u003c means the same and can't end the script element."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _template(name: str) -> str:
    return resources.files("selfattn.view").joinpath(name).read_text(encoding="utf-8")


def encode(weights: NDArray[np.float32], budget: int, layer: int | None = None) -> dict[str, Any]:
    """(layers, heads, L, L) weights as fields of the page's data, in at most ``budget`` characters of JSON.

    Where layers have to be left out, ``layer`` is among those that stay.
    """
    num_layers, num_heads, length, _ = weights.shape
    count, per_row = _fit(num_layers, num_heads, length, budget)
    layers = np.linspace(num_layers - 1, 0, count).round().astype(int)[::-1].tolist()
    if layer is not None and layer not in layers:
        nearest = min(range(count), key=lambda at: abs(layers[at] - layer))
        layers[nearest] = layer
    weights = weights[layers]
    fields: dict[str, Any] = {"layers": layers, "allLayers": num_layers, "heads": num_heads}
    fields["perRow"] = per_row
    if per_row < length:
        total = float(weights.sum(dtype=np.float64))
        kept = np.sort(np.argpartition(-weights, per_row - 1, axis=-1)[..., :per_row], axis=-1)
        weights = np.take_along_axis(weights, kept, axis=-1)
        fields["columns"] = _base64(kept.astype(_column_type(length)))
        fields["coverage"] = float(weights.sum(dtype=np.float64)) / max(total, 1e-30)
    bytes_, scale = quantise(weights)
    return {**fields, "scale": _base64(scale.astype("<f4")), "weights": _base64(bytes_)}


def _fit(num_layers: int, num_heads: int, length: int, budget: int) -> tuple[int, int]:
    """How many layers to keep and how many weights of a row: all, else fewer weights, else fewer layers."""
    count = num_layers
    while True:
        rows = count * num_heads * length
        room = (budget - 1000) * 3 // 4 - 4 * rows  # bytes, after the other fields and the rows' scales
        some = min(length, room // ((_column_type(length).itemsize + 1) * rows))  # a column and a weight each
        per_row = length if rows * length <= room else some
        if per_row >= min(length, MIN_PER_ROW) or count == 1:
            break
        count = (count + 1) // 2
    if per_row < 1 or length > 65536:
        raise ValueError(f"{num_heads} heads of {length} tokens don't fit into one page: give a shorter text")
    return count, per_row


def _column_type(length: int) -> np.dtype[Any]:
    return np.dtype("u1" if length <= 256 else "<u2")


def quantise(weights: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """(..., n) weights as bytes (..., n) and scales (...): byte * scale is within scale / 2 of the weight."""
    scale = weights.max(axis=-1) / np.float32(255)
    divisor = np.where(scale > 0, scale, np.float32(1))[..., None]
    return np.minimum(np.rint(weights / divisor), 255).astype(np.uint8), scale


def _base64(array: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
