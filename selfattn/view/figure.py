# SPDX-License-Identifier: Apache-2.0
"""The attention matrix as a matplotlib picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(
    labels: list[str], weights: NDArray[np.float32], title: str, ax: Axes | None, options: dict[str, Any]
) -> Axes:
    """Draw (L, L) weights: rows attend, columns are attended to."""
    try:
        from matplotlib import pyplot
        from matplotlib.ticker import PercentFormatter
    except ImportError as error:
        raise ImportError("AttentionMap.plot needs matplotlib: pip install 'selfattn[view]'") from error
    length = len(labels)
    if ax is None:
        side = min(max(3.5, 1.6 + 0.34 * length), 14.0)  # inches
        _, ax = pyplot.subplots(figsize=(side + 0.6, side), layout="constrained")
    image = ax.imshow(weights, **{"cmap": "Blues", "vmin": 0.0, **options})
    size = 10 if length <= 40 else max(3.0, 400 / length)  # points: labels as tall as their row
    # A dollar sign would begin mathematics.
    texts = [label.replace("$", r"\$") for label in labels]
    ax.set_xticks(range(length), texts, rotation=90, fontsize=size)
    ax.set_yticks(range(length), texts, fontsize=size)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("is attended to")
    ax.set_ylabel("attends")
    if title:
        ax.set_title(title, fontsize=11, pad=12)
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03, format=PercentFormatter(1.0))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=9)
    return ax
