# SPDX-License-Identifier: Apache-2.0
"""An encoder as a safetensors file: every bit comes back, and a damaged file is refused by name."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support.encoder_families import EVERY, FAMILIES
from support.layer_makers import layer, norm, same_bits, words

from selfattn.layers import Encoder, EncoderLayer, MultiHeadSelfAttention


@pytest.fixture
def saved(rng, tmp_path):
    stack = Encoder(
        [layer(rng, True, "rms", "silu", True, scale=0.3), layer(rng, True, causal=True)], norm(rng, "rms")
    )
    path = tmp_path / "encoder.safetensors"
    stack.save(path)
    return stack, path


def rewrite(path, change):
    """Saves the file again after `change(tensors, configuration, metadata)`."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    before = metadata["configuration"]
    tensors, configuration = load_file(path), json.loads(before)
    change(tensors, configuration, metadata)
    if metadata.get("configuration") == before:
        metadata["configuration"] = json.dumps(configuration)
    save_file(tensors, path, metadata)


def settings_in(path):
    with safe_open(path, framework="numpy") as file:
        assert file.metadata()["version"] == "1"
        return json.loads(file.metadata()["configuration"])["encoder"]


def test_loading_gives_back_every_bit(saved, rng):
    stack, path = saved
    back, x = Encoder.load(path), words(rng, 2, 5)
    same_bits(back(x), stack(x))
    assert repr(back.layers) == repr(stack.layers)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", EVERY)
def test_every_option_comes_back(rng, tmp_path, name):
    stack, path = EVERY[name](rng), tmp_path / "encoder.safetensors"
    stack.save(path)
    back, x = Encoder.load(path), words(rng, 2, 9)
    same_bits(back(x), stack(x))
    assert repr(back.layers) == repr(stack.layers)
    assert repr(back) == repr(stack)
    assert [layer.attention.rotary for layer in back.layers] == [
        layer.attention.rotary for layer in stack.layers
    ]
    back.save(path.with_name("again"))
    assert settings_in(path.with_name("again")) == settings_in(path)


def test_a_shared_relative_bias_is_a_named_tensor(rng, tmp_path):
    stack = FAMILIES["t5"](rng)
    stack.save(tmp_path / "t5")
    same_bits(load_file(tmp_path / "t5")["relative_bias.table"], stack.relative_bias.table)


OLD_NAMES = {"class", "attention", "attention_norm", "feed_forward", "feed_forward_norm", "norm_first"}
OLD_HEADS = {"class", "num_heads", "num_kv_heads", "causal", "scale"}


def test_a_file_of_before_the_options_is_the_same_file(saved):
    """What an encoder without them writes has no word of the options, so that files of before still load."""
    _, path = saved
    settings = settings_in(path)
    assert set(settings) == {"class", "layers", "final_norm"}
    for one in settings["layers"]:
        assert set(one) <= OLD_NAMES
        assert set(one["attention"]) <= OLD_HEADS


def test_the_file_holds_named_tensors(saved):
    stack, path = saved
    tensors = load_file(path)
    same_bits(tensors["layers.1.attention.query_weight"], stack.layers[1].attention.query_weight)
    assert {"layers.0.feed_forward.gate_weight", "layers.1.attention_norm.bias", "final_norm.weight"} <= set(
        tensors
    )


def test_strided_weights_are_saved_as_they_read(rng, tmp_path):
    one = layer(rng)
    heads = MultiHeadSelfAttention(
        *(
            np.asfortranarray(getattr(one.attention, f"{n}_weight"))
            for n in ("query", "key", "value", "output")
        ),
        num_heads=4,
        num_kv_heads=2,
    )
    stack = Encoder([EncoderLayer(heads, one.attention_norm, one.feed_forward, one.feed_forward_norm)])
    stack.save(tmp_path / "e")
    back = Encoder.load(tmp_path / "e").layers[0].attention
    np.testing.assert_array_equal(back.query_weight, heads.query_weight)
    np.testing.assert_array_equal(back.output_weight, heads.output_weight)


NAME = "layers.0.attention.key_weight"
DAMAGES = {
    "missing": (lambda t, c, m: t.pop(NAME), f"missing {NAME}"),
    "unexpected": (lambda t, c, m: t.update(extra=t[NAME]), "unexpected extra"),
    "shape": (
        lambda t, c, m: t.update({NAME: t[NAME][:-1].copy()}),
        rf"{NAME} has shape \[23, 12\], not \[24, 12\]",
    ),
    "nan": (lambda t, c, m: t[NAME].__setitem__((3, 4), np.nan), r"key_weight holds 1 NaN or Inf.*\[3, 4\]"),
    "version": (lambda t, c, m: m.update(version="2"), r"'selfattn.encoder', '2'.*'selfattn.encoder', '1'"),
    "format": (lambda t, c, m: m.update(format="pt"), "'pt', '1'"),
    "no configuration": (lambda t, c, m: m.pop("configuration"), "no readable configuration"),
    "configuration": (lambda t, c, m: c.clear(), "does not describe an encoder and its tensors"),
    "class": (lambda t, c, m: c["encoder"].update({"class": "LayerNorm"}), "a LayerNorm, not an Encoder"),
    "inner class": (
        lambda t, c, m: c["encoder"]["final_norm"].update({"class": "os"}),
        "'os' is not a layer",
    ),
    "setting": (lambda t, c, m: c["encoder"]["layers"][0].update(depth=3), "depth"),
    "layer": (lambda t, c, m: c["encoder"]["layers"].__setitem__(0, {"class": "LayerNorm"}), "an encoder"),
    "no layer": (lambda t, c, m: c["encoder"].update(layers=[None]), "does not describe an encoder"),
    "norm": (lambda t, c, m: c["encoder"].update(final_norm=3), "final_norm is a int"),
    "deep": (lambda t, c, m: m.update(configuration="[" * 100_000), "no readable configuration"),
    "heads": (lambda t, c, m: c["encoder"]["layers"][0]["attention"].update(num_heads=5), "num_heads=5"),
    "no norm": (
        lambda t, c, m: c["encoder"]["layers"][0].update(norm_first=False, attention_norm=None),
        "norm_first",
    ),
    "window": (lambda t, c, m: c["encoder"]["layers"][0]["attention"].update(window=[1]), "window=.* a pair"),
    "rotary": (
        lambda t, c, m: c["encoder"]["layers"][0]["attention"].update(
            rotary={"class": "RotaryPositions", "base": -1}
        ),
        "base=-1 must be positive",
    ),
    "frequencies": (
        lambda t, c, m: c["encoder"]["layers"][0]["attention"].update(
            rotary={"class": "RotaryPositions", "frequencies": [1.0, "2"]}
        ),
        "frequencies='2' must be a number",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_name(saved, damage):
    _, path = saved
    change, message = DAMAGES[damage]
    rewrite(path, change)
    with pytest.raises(ValueError, match=message) as error:
        Encoder.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_file_is_refused_by_name(saved, kept):
    _, path = saved
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="truncated or not a safetensors file") as error:
        Encoder.load(path)
    assert str(path) in str(error.value)


def test_layers_nested_too_deeply_are_refused_by_name(saved):
    """Whether the JSON parser runs out of stack or the layers do, depends on the version of Python."""
    _, path = saved
    nested = '{"class": "Encoder", "final_norm": ' * 5000 + "3" + "}" * 5000

    def nest(tensors, configuration, metadata):
        shapes = json.dumps(configuration["tensors"])
        metadata["configuration"] = f'{{"encoder": {nested}, "tensors": {shapes}}}'

    rewrite(path, nest)
    with pytest.raises(ValueError, match=r"no readable configuration|does not describe an encoder") as error:
        Encoder.load(path)
    assert str(path) in str(error.value)


def test_loaded_weights_are_not_copied(saved):
    _, path = saved
    weights = Encoder.load(path).layers[0].attention.query_weight
    assert not weights.flags.owndata
    assert not weights.flags.writeable


def test_who_only_computes_imports_nothing_for_files():
    code = (
        "import sys, numpy; before = set(sys.modules); import selfattn.layers; "
        "print(sorted({'json', 'pathlib', 'numpy.typing', 'safetensors'} & (set(sys.modules) - before)))"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        Encoder.load(tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        Encoder.load(tmp_path)


def test_a_failed_save_leaves_the_old_file(saved, monkeypatch):
    stack, path = saved
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        stack.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_without_safetensors_the_error_says_what_to_install(saved, monkeypatch):
    stack, path = saved
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for action in (lambda: stack.save(path), lambda: Encoder.load(path)):
        with pytest.raises(ImportError, match=r"pip install 'selfattn\[text\]'"):
            action()
