# SPDX-License-Identifier: Apache-2.0
"""BERT: "BERT: Pre-training of Deep Bidirectional Transformers" (Devlin et al., 2018)."""

from selfattn.text.families.family import Family

BERT = Family(
    model_types=("bert",),
    keys={
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "activation": "hidden_act",
        "layer_norm_eps": "layer_norm_eps",
        "vocab_size": "vocab_size",
        "max_positions": "max_position_embeddings",
        "token_types": "type_vocab_size",
    },
    defaults={"activation": "gelu", "layer_norm_eps": 1e-12, "token_types": 2},
    prefixes=("bert.",),
    embeddings={
        "words": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "token_types": "embeddings.token_type_embeddings",
        "norm": "embeddings.LayerNorm",
    },
    layers="encoder.layer.",
    layer={
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "feed_forward_norm": "output.LayerNorm",
    },
    encoder=("embeddings.", "encoder.layer."),
)
