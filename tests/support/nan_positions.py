# SPDX-License-Identifier: Apache-2.0
"""Options under which NaN is put at each single position, and which keys a query sees under them."""

import ml_dtypes
import numpy as np

BATCH, HEADS, KV_HEADS, Q_LEN, KV_LEN = 2, 4, 2, 5, 7
LENGTHS = np.array([7, 4])
MASK = np.random.default_rng(1).random((BATCH, HEADS, Q_LEN, KV_LEN)) < 0.6
MASK[0, 1, 2] = False  # a row that sees no key
OPTIONS = {
    "top_left": {"causal": "top_left"},
    "bottom_right": {"causal": "bottom_right"},
    "window": {"causal": "bottom_right", "window": (1, 0)},
    "window to both sides": {"window": (2, 1), "softcap": 2.0},
    "window open to the left": {"window": (None, 0)},
    "alibi": {"causal": "bottom_right", "alibi_slopes": np.array([0.5, 0.25, 0.125, 0.0])},
    "plain": {},
    "mask": {"mask": MASK},
    "bias": {"bias": np.where(MASK, np.float32(0.5), np.float32(-np.inf))},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": np.array([0.0, 1.0, -3.0, 5.0])},
    "scale 0": {"scale": 0.0},
    "everything": {
        "mask": MASK,
        "bias": np.where(MASK[:, :, ::-1], np.float32(0.5), np.float32(-np.inf)),
        "causal": "bottom_right",
        "window": (3, 2),
        "softcap": 4.0,
        "alibi_slopes": np.array([0.5, 0.25, 0.125, 0.0]),
        "sinks": np.array([0.0, 1.0, -3.0, 5.0]),
        "scale": -0.4,
    },
}
# every option in float32, and the other dtypes, whose numbers are read in other ways, with few
CASES = [(name, "float32") for name in OPTIONS]
CASES += [
    (name, dtype) for name in ("plain", "everything") for dtype in ("float64", "float16", ml_dtypes.bfloat16)
]


def visible(form="padded", *, mask=None, bias=None, causal=False, window=(None, None), **_):
    """(batch, heads, q_len, kv_len), by its definition key by key: who sees whom."""
    seen = np.zeros((BATCH, HEADS, Q_LEN, KV_LEN), bool)
    # without a diagonal the last query stands at the last key that it is given, where that is padding too
    padding_counts = not causal and form in ("padded", "cached")
    left, right = (99 if side is None else side for side in window)
    for b, h, i, j in np.ndindex(seen.shape):
        last = KV_LEN if padding_counts else LENGTHS[b]
        position = i if causal == "top_left" else i + last - Q_LEN
        seen[b, h, i, j] = (
            j < LENGTHS[b]
            and (not causal or j <= position)
            and (window == (None, None) or position - left <= j <= position + right)
            and (mask is None or mask[b, h, i, j])
            and (bias is None or bias[b, h, i, j] != -np.inf)
        )
    return seen
