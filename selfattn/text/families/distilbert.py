# SPDX-License-Identifier: Apache-2.0
"""DistilBERT: "DistilBERT, a distilled version of BERT" (Sanh et al., 2019)."""

from selfattn.text.families.family import Family

DISTILBERT = Family(
    model_types=("distilbert",),
    keys={
        "hidden_size": "dim",
        "num_layers": "n_layers",
        "num_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "activation": "activation",
        "layer_norm_eps": "layer_norm_eps",
        "vocab_size": "vocab_size",
        "max_positions": "max_position_embeddings",
    },
    defaults={"activation": "gelu", "layer_norm_eps": 1e-12},
    prefixes=("distilbert.",),
    embeddings={
        "words": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "norm": "embeddings.LayerNorm",
    },
    layers="transformer.layer.",
    layer={
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "output": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "up": "ffn.lin1",
        "down": "ffn.lin2",
        "feed_forward_norm": "output_layer_norm",
    },
    encoder=("embeddings.", "transformer.layer."),
)
