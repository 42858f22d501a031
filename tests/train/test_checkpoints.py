# SPDX-License-Identifier: Apache-2.0
"""A run that stopped goes on with the bits it would have had; a file not its own is refused by name."""

import json
import struct

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support.accuracy import assert_same_bits
from support.training_makers import TOTAL, toy_run, toy_weights

from selfattn.train import AdamW, flatten, load_checkpoint, save_checkpoint

GENERATORS = [np.random.PCG64, np.random.Philox, np.random.MT19937, np.random.SFC64]


def start(seed=0, kind=np.random.PCG64):
    weights = toy_weights(seed)
    return weights, AdamW(weights, weight_decay=0.1), np.random.Generator(kind(seed + 5))


def assert_same_state(actual, expected):
    """Of (weights, optimizer, rng)."""
    assert actual[1].steps == expected[1].steps
    assert str(actual[2].bit_generator.state) == str(expected[2].bit_generator.state)
    for part in (lambda s: flatten(s[0]), lambda s: s[1].first_moments, lambda s: s[1].second_moments):
        assert list(part(actual)) == list(part(expected))
        for name, array in part(expected).items():
            assert_same_bits(part(actual)[name], array)


@pytest.fixture
def saved(tmp_path):
    weights, optimizer, rng = start()
    _, weights = toy_run(weights, optimizer, rng, 0, 5)
    path = tmp_path / "run.safetensors"
    save_checkpoint(path, weights, optimizer, 5, rng)
    return path, (weights, optimizer, rng)


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("stop", [0, 7, TOTAL])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, stop, kind):
    weights, optimizer, rng = start(kind=kind)
    losses, weights = toy_run(weights, optimizer, rng)

    first = start(kind=kind)
    losses_before, stopped = toy_run(*first, 0, stop)
    save_checkpoint(tmp_path / "run", stopped, first[1], stop, first[2])
    model, second_optimizer, second_rng = start(seed=1, kind=kind)
    resumed, step = load_checkpoint(tmp_path / "run", model, second_optimizer, second_rng)
    assert step == stop
    losses_after, resumed = toy_run(resumed, second_optimizer, second_rng, step)

    assert losses_before + losses_after == losses
    assert_same_state((resumed, second_optimizer, second_rng), (weights, optimizer, rng))


def test_the_file_holds_named_tensors_and_stands_alone(saved):
    path, (weights, optimizer, _) = saved
    tensors = load_file(path)
    assert_same_bits(tensors["weights.layers.0.bias"], weights["layers"][0]["bias"])
    assert_same_bits(tensors["second_moment.embedding"], optimizer.second_moments["embedding"])
    assert len(tensors) == 3 * len(flatten(weights))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_weights_alone_can_be_loaded_and_are_read_only(saved):
    path, (weights, _, _) = saved
    loaded, step = load_checkpoint(path, toy_weights(3))
    assert step == 5
    assert loaded["layers"][1]["bias"] is None
    for name, array in flatten(loaded).items():
        assert_same_bits(array, flatten(weights)[name])
        while isinstance(array, np.ndarray):
            assert not array.flags.writeable
            array = array.base


def test_strided_and_rankless_weights_come_back(tmp_path, rng):
    weights = [
        rng.standard_normal((4, 6), dtype=np.float32).T[::2],
        np.full((), 3, np.float32),
        np.zeros((0, 2), "f4"),
    ]
    save_checkpoint(tmp_path / "run", weights, AdamW(weights), 0)
    for actual, expected in zip(load_checkpoint(tmp_path / "run", weights)[0], weights, strict=True):
        assert_same_bits(actual, expected)


# ---- files that are not this run's ----


def assert_refused(path, error, message, *, seed=9, **others):
    """Loading raises, and changes neither optimizer nor generator."""
    weights, optimizer, rng = state = others.get("state") or start(seed)
    before = start(seed)
    with pytest.raises(error, match=message):
        load_checkpoint(path, weights, optimizer, rng)
    if "state" not in others:
        assert_same_state(state, before)


def rewrite(path, change):
    """Saves the file again after `change(tensors, state, metadata)`."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    before = metadata["state"]
    tensors, state = load_file(path), json.loads(before)
    change(tensors, state, metadata)
    if metadata.get("state") == before:
        metadata["state"] = json.dumps(state)
    save_file(tensors, path, metadata)


FLOAT32 = np.zeros(3, np.float32)
DAMAGES = [
    (
        lambda t, s, m: t.pop("weights.layers.0.bias"),
        r"lacks 1 of the model's 12 entries, first weights\.layers\.0\.bias",
    ),
    (
        lambda t, s, m: t.pop("first_moment.embedding"),
        r"lacks 1 of the model's 12 entries, first first_moment\.embed",
    ),
    (
        lambda t, s, m: t.update({"weights.x": FLOAT32}),
        r"1 entries that the model does not have, first weights\.x",
    ),
    (
        lambda t, s, m: t.update({"second_moment.embedding": FLOAT32}),
        r"second_moment\.embedding has shape \(3,\); in the model it has \(40, 12\)",
    ),
    (lambda t, s, m: t.update({"weights.embedding": np.zeros((40, 12))}), r"weights\.embedding has type F64"),
    (
        lambda t, s, m: m.pop("format"),
        r"format and version \(None, '1'\); this reads \('selfattn\.checkpoint', '1'\)",
    ),
    (lambda t, s, m: m.update(version="2"), r"'2'\)"),
    (lambda t, s, m: m.pop("state"), r"no readable state"),
    (lambda t, s, m: m.update(state="{"), r"no readable state"),
    (lambda t, s, m: m.update(state="[]"), r"no readable state"),
    (lambda t, s, m: m.update(state="[" * 100_000), r"no readable state"),
    (lambda t, s, m: s.update(step=-1), r"no readable state.*step and optimizer_steps are \(-1, 5\)"),
    (lambda t, s, m: s.update(optimizer_steps=True), r"no readable state"),
    (lambda t, s, m: s.pop("rng"), r"no readable state"),
    (lambda t, s, m: s.update(rng=None), r"saved without rng"),
    (lambda t, s, m: s.update(rng=[]), r"has the state of a None but rng is a PCG64"),
    (lambda t, s, m: s["rng"].pop("state"), r"a random state that PCG64 does not take"),
    (lambda t, s, m: s["rng"]["state"].update(inc=-1), r"a random state that PCG64 does not take"),
    (lambda t, s, m: s["rng"]["state"].update(inc="1"), r"a random state that PCG64 does not take"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGES)
def test_damaged_files_are_refused_by_name(saved, change, message):
    path, _ = saved
    rewrite(path, change)
    assert_refused(path, ValueError, message)


@pytest.mark.parametrize("section", ["weights", "first_moment", "second_moment"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_by_name(saved, section, number):
    path, _ = saved

    def change(tensors, state, metadata):
        tensors[f"{section}.embedding"][3, 4] = number

    rewrite(path, change)
    assert_refused(path, ValueError, rf"{section}\.embedding holds 1 NaN or Inf among its 480 values")


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (np.random.MT19937, lambda s: s["state"].update(pos="x")),
        (np.random.MT19937, lambda s: s["state"]["key"].pop()),
        (np.random.Philox, lambda s: s.pop("uinteger")),
        (np.random.Philox, lambda s: s["state"].update(counter=[1, 2])),
    ],
)
def test_a_random_state_is_taken_whole_or_not_at_all(tmp_path, kind, change):
    weights, optimizer, rng = start(kind=kind)
    save_checkpoint(tmp_path / "run", weights, optimizer, 0, rng)
    rewrite(tmp_path / "run", lambda tensors, state, metadata: change(state["rng"]))
    other = np.random.Generator(kind(8))
    before = str(other.bit_generator.state)
    with pytest.raises(ValueError, match=f"a random state that {kind.__name__} does not take"):
        load_checkpoint(tmp_path / "run", weights, optimizer, other)
    assert str(other.bit_generator.state) == before


def test_truncated_and_foreign_files(saved):
    path, _ = saved
    whole = path.read_bytes()
    for size in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert_refused(path, ValueError, r"run\.safetensors is truncated or not a safetensors file")
    for foreign in (b"PK\x03\x04" + bytes(200), struct.pack("<Q", 1 << 60) + whole[8:]):
        path.write_bytes(foreign)
        assert_refused(path, ValueError, "is truncated or not a safetensors file")
    save_file({"weights.embedding": FLOAT32}, path)
    assert_refused(path, ValueError, r"format and version \(None, None\)")


def test_what_is_not_a_file(tmp_path):
    assert_refused(tmp_path / "none", FileNotFoundError, "none is not a file")
    assert_refused(tmp_path, FileNotFoundError, "is not a file")


def test_another_model_and_another_generator(saved):
    path, _ = saved
    weights, _, rng = start()
    weights["layers"][0]["bias"] = np.zeros(13, np.float32)
    assert_refused(
        path, ValueError, r"weights\.layers\.0\.bias has shape \(12,\)", state=(weights, AdamW(weights), rng)
    )
    assert_refused(
        path,
        ValueError,
        r"weights: layers\.0\.bias has shape \(13,\); in the optimizer",
        state=(weights, start()[1], rng),
    )
    philox = np.random.Generator(np.random.Philox(1))
    assert_refused(path, ValueError, "the state of a PCG64 but rng is a Philox", state=(*start()[:2], philox))
    with pytest.raises(TypeError, match="rng is a PCG64; it must be a Generator"):
        load_checkpoint(path, toy_weights(), None, np.random.PCG64(1))


# ---- saving ----


def test_saving_replaces_the_old_file_at_the_end(saved, monkeypatch):
    path, (weights, optimizer, rng) = saved
    before = path.read_bytes()

    def power_cut(number):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", power_cut)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, toy_weights(3), optimizer, 6, rng)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    monkeypatch.undo()
    save_checkpoint(path, weights, optimizer, 6, rng)
    assert load_checkpoint(path, weights)[1] == 6


def test_a_run_that_went_wrong_does_not_replace_what_it_could_go_on_from(saved):
    path, (weights, optimizer, rng) = saved
    before = path.read_bytes()
    weights["layers"][0]["bias"] = np.full(12, np.nan, np.float32)
    with pytest.raises(ValueError, match=r"weights\.layers\.0\.bias holds 12 NaN or Inf among its 12 values"):
        save_checkpoint(path, weights, optimizer, 6, rng)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_saving_refuses(tmp_path):
    weights, optimizer, rng = start()
    with pytest.raises(OSError, match=r"nowhere.* cannot be written"):
        save_checkpoint(tmp_path / "nowhere" / "run", weights, optimizer, 0, rng)
    with pytest.raises(ValueError, match="step=-1 must not be negative"):
        save_checkpoint(tmp_path / "run", weights, optimizer, -1, rng)
    with pytest.raises(TypeError, match=r"rng is a RandomState; it must be a Generator"):
        save_checkpoint(tmp_path / "run", weights, optimizer, 0, np.random.RandomState(0))
    weights["layers"].pop()
    with pytest.raises(
        ValueError, match=r"weights lacks 1 of the optimizer's 4 entries, first layers\.1\.weight"
    ):
        save_checkpoint(tmp_path / "run", weights, optimizer, 0, rng)
    assert not list(tmp_path.iterdir())
