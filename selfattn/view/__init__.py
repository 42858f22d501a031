# SPDX-License-Identifier: Apache-2.0
"""Which word attends to which: in the terminal, as one HTML page, and as a matplotlib figure."""

from selfattn.view.attention_map import AttentionMap

__all__ = ["AttentionMap"]
