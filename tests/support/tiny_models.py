# SPDX-License-Identifier: Apache-2.0
"""Complete model directories of a few kilobytes, with seeded random weights, one for each architecture."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from selfattn.text import TextEncoder
from selfattn.text.configuration import Configuration, read_configuration

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
    "a zebra",
    "she said that this is not what we want . one , two , three ! is it hot ? not cold but hot in the sun",
]
QUERY = "encoder.layer.1.attention.self.query.weight"  # one of the tensors of "bert"
FAMILIES = ("bert", "distilbert", "roberta")

Tensors = dict[str, NDArray[Any]]


def build(directory: Path, model_type: str = "bert", *, seed: int = 7, **changes: Any) -> Path:
    """Write config.json, model.safetensors, tokenizer.json and what sentence-transformers adds to them."""
    specials = (
        ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]
        if model_type == "roberta"
        else ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    )
    vocabulary = {token: i for i, token in enumerate(specials + WORDS)}
    write_json(directory / "config.json", _config(model_type, len(vocabulary)) | changes)
    _tokenizer(vocabulary).save(str(directory / "tokenizer.json"))
    save_file(tensors(read_configuration(directory / "config.json"), seed), directory / "model.safetensors")
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": False})
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    write_json(directory / "modules.json", modules)
    write_json(
        directory / "1_Pooling" / "config.json",
        {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True},
    )
    return directory


def load(directory: Path) -> TextEncoder:
    return TextEncoder.from_pretrained(directory)


def tensors(configuration: Configuration, seed: int) -> Tensors:
    """Random float32 tensors of the shapes that the configuration asks for; norms stay near 1 and 0."""
    rng = np.random.default_rng(seed)
    result = {}
    for name, shape in configuration.shapes():
        values = rng.random(shape) - 0.5
        if "norm" in name.lower():
            values = values * 0.2 + name.endswith(".weight")
        elif len(shape) == 2 and "embeddings" not in name:
            values = values * 6 / np.sqrt(shape[1])  # large enough for attention to prefer some words
        result[name] = values.astype(np.float32)
    return result


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    write_json(path, json.loads(path.read_text()) | changes)


def change_tensors(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def shard(directory: Path) -> dict[str, str]:
    """Split model.safetensors in two, and return the index's weight_map."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[:9], names[9:])):
        file = f"model-{i + 1:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, directory / file)
        weight_map |= dict.fromkeys(part, file)
    write_json(directory / "model.safetensors.index.json", {"weight_map": weight_map})
    return weight_map


def add_dense(directory: Path, tensors: dict[str, Any], **changes: Any) -> None:
    modules = json.loads((directory / "modules.json").read_text())
    modules.append({"type": "sentence_transformers.base.modules.dense.Dense", "path": "3_Dense"})
    write_json(directory / "modules.json", modules)
    config = {"in_features": 16, "out_features": 3, "activation_function": "torch.nn.modules.activation.Tanh"}
    write_json(directory / "3_Dense" / "config.json", config | changes)
    save_file(tensors, directory / "3_Dense" / "model.safetensors")


def _config(model_type: str, vocab_size: int) -> dict[str, Any]:
    common = {"model_type": model_type, "vocab_size": vocab_size}
    if model_type == "distilbert":
        sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "activation": "gelu"}
        return common | sizes | {"max_position_embeddings": 40}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    common |= sizes | {"hidden_act": "gelu", "layer_norm_eps": 1e-12}
    if model_type == "roberta":
        return common | {"max_position_embeddings": 42, "type_vocab_size": 1, "pad_token_id": 1}
    return common | {"max_position_embeddings": 40, "type_vocab_size": 2, "pad_token_id": 0}


def _tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    """WordPiece as BERT's, with a truncation and a padding baked in, which a loader must not take over."""
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8, pad_id=vocabulary["[PAD]"], pad_token="[PAD]")
    return tokenizer
