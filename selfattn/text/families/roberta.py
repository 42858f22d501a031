# SPDX-License-Identifier: Apache-2.0
"""RoBERTa: "A Robustly Optimized BERT Pretraining Approach" (Liu et al., 2019), and its descendants."""

from dataclasses import replace

from selfattn.text.families.bert import BERT

ROBERTA = replace(
    BERT,
    model_types=("camembert", "roberta", "xlm-roberta"),
    keys={**BERT.keys, "pad_token_id": "pad_token_id"},  # position i is row pad_token_id + 1 + i
    defaults={**BERT.defaults, "pad_token_id": 1},
    prefixes=("roberta.",),
)
