# SPDX-License-Identifier: Apache-2.0
"""The examples run, and say what they promise to say."""

import importlib
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from support import tiny_models

import selfattn
from selfattn import train

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_walk_the_road(capsys):
    runpy.run_path(str(EXAMPLES / "walk_the_road.py"), run_name="__main__")
    out = capsys.readouterr().out
    for step in ("words  11", "positions  11 x 64", "one cell  11 x 16", "3 layers in depth  11 x 64"):
        assert step in out
    assert out.rstrip().endswith("the same bits.")


@pytest.fixture
def load(monkeypatch):
    """Imports an example by its name; examples import their neighbours."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


# ---- stacking_language.py: every answer found anew, from the words alone ----


@pytest.fixture
def language(load):
    return load("stacking_language")


@pytest.fixture
def sentences(language):
    return language.write_sentences(300, np.random.default_rng(3))


def places_of(words, choices):
    return [i for i, word in enumerate(words) if word in choices]


def asked(sentences):
    """(words before "it", question -> where the answer stands) of every question."""
    for sentence in sentences:
        for i, place in enumerate(sentence.places):
            assert sentence.words[place] == "it"
            yield sentence.words[:place], {name: answers[i] for name, answers in sentence.answers.items()}


def test_sentences_are_many_short_and_of_the_vocabulary(language, sentences):
    assert len({" ".join(sentence.words) for sentence in sentences}) == 300
    assert max(len(sentence.words) for sentence in sentences) in range(28, language.MAX_WORDS + 1)
    assert {word for sentence in sentences for word in sentence.words} == set(language.VOCABULARY)
    assert len(set(language.VOCABULARY)) == len(language.VOCABULARY)
    assert all(sentence.words.count("it") == len(sentence.places) > 0 for sentence in sentences)


def test_it_is_the_thing_named_last_and_has_the_colour_before(language, sentences):
    for before, answers in asked(sentences):
        assert answers["what"] == places_of(before, language.THINGS)[-1]
        assert answers["colour"] == answers["what"] - 1
        assert before[answers["colour"]] in language.COLOURS


def test_the_subject_is_named_first_and_the_other_person_last(language, sentences):
    for before, answers in asked(sentences):
        people = places_of(before, language.PEOPLE)
        assert (answers["who"], answers["whom"]) == (people[0], people[-1])
        assert before[answers["who"]] != before[answers["whom"]]


def test_brackets_match_and_the_innermost_open_one_is_the_answer(language, sentences):
    depths = set()
    for before, answers in asked(sentences):
        is_open = []
        for i, word in enumerate(before):
            if word in language.BRACKETS:
                is_open.append(i)
            elif word in language.BRACKETS.values():
                assert language.BRACKETS[before[is_open.pop()]] == word
        assert answers["bracket"] == (is_open[-1] if is_open else None)
        depths.add(len(is_open))
    assert depths == {0, 1, 2}


def test_no_question_can_be_answered_by_what_answers_another(language, sentences):
    """The nearest colour is often another's, the subject is far away, the last bracket is closed again."""
    found = [
        (
            places_of(before, language.COLOURS)[-1] != answers["colour"],
            len(before) - answers["who"] > 15,
            answers["bracket"] is None and any(word in language.BRACKETS for word in before),
        )
        for before, answers in asked(sentences)
    ]
    assert (np.mean(found, axis=0) > 0.2).all()


def test_the_same_seed_writes_the_same_sentences(language, sentences):
    assert language.write_sentences(300, np.random.default_rng(3)) == sentences
    assert language.write_sentences(300, np.random.default_rng(4)) != sentences


# ---- stacking.py ----


@pytest.fixture
def stacking(load):
    return load("stacking")


@pytest.fixture
def reader(stacking):
    return stacking.Reader(2, 2, 32, np.random.default_rng(5))


def test_a_batch_points_at_the_questions(stacking, sentences):
    batch = stacking.Batch(sentences[:7])
    words = [word for sentence in sentences[:7] for word in sentence.words]
    assert [stacking.VOCABULARY[i] for i in batch.ids] == words
    assert batch.cu_seqlens[-1] == len(words) == len(batch.positions)
    assert {words[i] for i in batch.places} == {"it"}
    for question, targets in batch.targets.items():
        said = [word for sentence in sentences[:7] for word in sentence.answered(question)]
        assert [stacking.ANSWERS[question][i] for i in targets] == said


def assert_slopes(weights, grads, names, loss_at):
    """Along its gradient each weight changes the loss as fast as the gradient is long."""
    weights_by_name, grads = train.flatten(weights), train.flatten(grads)
    assert grads.keys() == weights_by_name.keys()
    for name in names:
        length = np.linalg.norm(grads[name].astype(np.float64))
        moved = [
            weights_by_name | {name: weights_by_name[name] + np.float32(step / length) * grads[name]}
            for step in (0.01, -0.01)
        ]
        up, down = (loss_at(train.unflatten(flat, weights)) for flat in moved)
        assert (up - down) / 0.02 == pytest.approx(length, rel=0.03)


def test_the_gradients_say_where_the_loss_falls(stacking, reader, sentences):
    batch, weights = stacking.Batch(sentences[:20]), reader.weights

    def loss_at(moved):
        reader.take(moved)
        return reader.gradients(batch)[0]

    names = ("words", "positions", "answer_weight", "encoder.layers.0.attention.query_weight")
    assert_slopes(weights, reader.gradients(batch)[1], names, loss_at)


def test_a_run_gives_the_same_bits_on_any_threads_and_after_a_stop(stacking, sentences, tmp_path):
    def begin():  # the real sizes: enough work for two threads
        reader = stacking.Reader(*stacking.MODELS["4 cells, 2 layers"], np.random.default_rng(5))
        return reader, stacking.new_optimizer(reader), np.random.default_rng(6)

    through, optimizer, rng = begin()
    stacking.learn(through, optimizer, sentences, rng, range(6), total=6, num_threads=1)

    stopped, optimizer, rng = begin()
    stacking.learn(stopped, optimizer, sentences, rng, range(3), total=6, num_threads=2)
    train.save_checkpoint(tmp_path / "run.safetensors", stopped.weights, optimizer, 3, rng)

    resumed, optimizer, _ = begin()
    rng = np.random.default_rng()
    weights, step = train.load_checkpoint(tmp_path / "run.safetensors", resumed.weights, optimizer, rng)
    resumed.take(weights)
    stacking.learn(resumed, optimizer, sentences, rng, range(step, 6), total=6, num_threads=2)

    expected, found = train.flatten(through.weights), train.flatten(resumed.weights)
    assert [name for name in expected if expected[name].tobytes() != found[name].tobytes()] == []
    assert expected["words"].tobytes() != train.flatten(stopped.weights)["words"].tobytes()


def test_what_a_cell_sees_is_its_mean_attention_to_the_answers(stacking, reader, sentences):
    shares = stacking.seen(reader, stacking.Batch(sentences[:5]))
    assert shares.shape == (len(stacking.cell_names(reader)), len(stacking.ANSWERS)) == (4, 5)
    weights = reader.attention_weights(stacking.Batch(sentences[:5]))
    pairs = [
        (b, place, answer)
        for b, sentence in enumerate(sentences[:5])
        for place, answer in zip(sentence.places, sentence.answers["who"], strict=True)
    ]
    expected = np.mean([weights[1, b, 0, place, answer] for b, place, answer in pairs])
    assert shares[2, 1] == pytest.approx(expected, rel=1e-5)


def test_what_is_lost_without_a_cell(stacking, reader, sentences):
    """A cell that was silent before is not missed."""
    flat = train.flatten(reader.weights)
    name = "encoder.layers.1.attention.output_weight"
    output = flat[name].copy()
    output[:16] = 0
    reader.take(train.unflatten(flat | {name: output}, reader.weights))
    weights, batch = reader.weights, stacking.Batch(sentences)
    lost = stacking.lost(reader, batch)
    assert lost.shape == (4, 5)
    assert not lost[2].any()
    assert lost[[0, 1, 3]].any()
    assert reader.weights is weights


def test_the_example_is_in_a_bracket_and_has_another_colour_before_it(stacking, sentences):
    found = stacking.find_example(sentences)
    before, answers = list(asked([found]))[-1]
    assert answers["bracket"] is not None
    assert places_of(before, stacking.COLOURS)[-1] > answers["colour"]


def test_guesses(stacking, sentences):
    batch = stacking.Batch(sentences)
    commonest, any_word = stacking.commonest(sentences, batch), stacking.any_such_word(batch)
    assert commonest["bracket"] == (batch.targets["bracket"] == 0).mean()
    assert all(commonest[question] < any_word[question] < 1 for question in ("what", "who", "whom", "colour"))


def test_stacking_runs(stacking, monkeypatch, tmp_path, capsys):
    sizes = {"1 cell": (1, 1, 16), "2 cells": (1, 2, 16), "2 layers": (2, 2, 16), "3 layers": (3, 1, 16)}
    for name, value in {"TRAIN": 40, "TEST": 10, "STEPS": 2, "BATCH": 4, "MODELS": sizes}.items():
        monkeypatch.setattr(stacking, name, value)
    monkeypatch.setattr(sys, "argv", ["stacking.py", str(tmp_path)])
    stacking.main()
    out = capsys.readouterr().out
    assert all(f"\n{name}" in out for name in (*sizes, "the commonest answer", "any such word before"))
    assert "layer 2, cell 2" in out
    picture = (tmp_path / "stacking.svg").read_text(encoding="utf-8")
    assert len(picture) < 300_000
    assert "lost without" in picture


# ---- fine_tune.py ----


@pytest.fixture
def fine_tune(load):
    return load("fine_tune")


def test_what_is_documented(fine_tune):
    pairs = fine_tune.documented()
    assert len(pairs) > 1000
    assert len({pair.sentence for pair in pairs}) == len(pairs)
    assert all(4 <= len(pair.sentence.split()) <= 40 for pair in pairs)
    assert "heapq.nlargest(n, iterable, key)" in {pair.name for pair in pairs}
    learned, held_out = fine_tune.split(pairs)
    modules = [{pair.module for pair in part} for part in (learned, held_out)]
    assert not modules[0] & modules[1]
    assert len(learned) + len(held_out) == len(pairs)
    assert len(held_out) > len(pairs) / 10
    assert all(pair.name.startswith(pair.module) for pair in pairs)


def test_names_are_those_of_public_functions_classes_and_methods(fine_tune):
    source = '''
def visible(a, /, b, *, c):
    """Says what it does, in one
    sentence. And in another.

    More.
    """
def silent(): pass
def brief(): "Too short."
def _hidden(): "This one is not for everybody."
class Box:
    """A box to put things in."""
    def open(self, wide):
        """Opens it as wide as you like"""
'''
    assert list(fine_tune.described(fine_tune.ast.parse(source), "m")) == [
        ("Says what it does, in one sentence.", "m.visible(a, b, c)"),
        ("A box to put things in.", "m.Box"),
        ("Opens it as wide as you like", "m.Box.open(wide)"),
    ]


def test_a_tie_is_not_a_find(fine_tune):
    scores = np.array([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.3, 0.2, 0.1]])
    assert fine_tune.ranks(scores).tolist() == [1, 2, 3]
    assert fine_tune.line("after", scores).split() == ["after", "33.3%", "100.0%", "0.611"]


@pytest.fixture
def small(fine_tune, tmp_path, monkeypatch):
    """A function that loads a small model anew, and pairs of sentences for it."""
    monkeypatch.setattr(fine_tune, "BATCH", 4)
    monkeypatch.setattr(fine_tune, "SAVE_EVERY", 2)
    directory = tiny_models.build(tmp_path / "model")
    texts = [text for text in tiny_models.SENTENCES if text]
    pairs = [
        fine_tune.Pair("m", text, " ".join(text.split()[::-2])) for text in texts if len(text.split()) > 1
    ]
    return lambda: selfattn.TextEncoder.from_pretrained(directory), pairs


def test_the_gradient_of_every_weight_of_the_network(fine_tune, small):
    load_model, pairs = small
    model = load_model()
    network = model.network
    texts = [
        model.tokenizer.encode(text).ids for text in [p.sentence for p in pairs] + [p.name for p in pairs]
    ]

    def loss_at(moved):
        return fine_tune.gradients(network.replace(moved), texts)[0]

    names = (
        "word_table",
        "position_table",
        "type_row",
        "norm.weight",
        "encoder.layers.1.attention.key_weight",
    )
    assert_slopes(network.weights(), fine_tune.gradients(network, texts)[1], names, loss_at)


def test_fine_tuning_goes_on_after_a_stop_with_the_same_bits(fine_tune, small, tmp_path, monkeypatch):
    load_model, pairs = small
    through, stopped, resumed = load_model(), load_model(), load_model()
    checkpoint = tmp_path / "run.safetensors"
    before = through.encode(pairs[0].sentence)
    through = fine_tune.fine_tune(through, pairs, total=6)
    assert not np.array_equal(through.encode(pairs[0].sentence), before)

    gradients, calls = fine_tune.gradients, []

    def stop_in_the_fifth(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return gradients(*arguments)

    monkeypatch.setattr(fine_tune, "gradients", stop_in_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        fine_tune.fine_tune(stopped, pairs, total=6, checkpoint=checkpoint)
    calls.clear()
    resumed = fine_tune.fine_tune(resumed, pairs, total=6, checkpoint=checkpoint)
    assert len(calls) == 2
    expected, found = (train.flatten(m.network.weights()) for m in (through, resumed))
    assert [name for name in expected if expected[name].tobytes() != found[name].tobytes()] == []


def test_fine_tuning_runs(fine_tune, small, tmp_path, monkeypatch, capsys):
    _, pairs = small
    many = [fine_tune.Pair(f"m{i % 8}", pair.sentence, pair.name) for i in range(8) for pair in pairs]
    monkeypatch.setattr(fine_tune, "documented", lambda: many)
    monkeypatch.setattr(fine_tune, "MODEL", str(tmp_path / "model"))
    monkeypatch.setattr(sys, "argv", ["fine_tune.py", "--save", str(tmp_path / "saved")])
    fine_tune.main()
    out = capsys.readouterr().out
    assert "30 functions and classes to learn from; 10 of other modules to find" in out
    assert [line.split()[0] for line in out.splitlines() if re.search(r"\d%", line)] == ["before", "after"]
    saved = selfattn.TextEncoder.from_pretrained(tmp_path / "saved")
    assert fine_tune.line("after", fine_tune.retrieve(saved, fine_tune.split(many)[1])) in out
    with pytest.raises(SystemExit):
        fine_tune.main()
    assert "saved is there already" in capsys.readouterr().err


# ---- docs/training.md ----


def test_the_page_about_training_runs(tmp_path, monkeypatch):
    page = (EXAMPLES.parent / "docs" / "training.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    tiny_models.build(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    variables = {}
    exec("\n".join(blocks), variables)
    assert variables["loss"] < 0.6
    assert variables["first"] == 200
    saved = selfattn.TextEncoder.from_pretrained(tmp_path / "fine-tuned")
    np.testing.assert_array_equal(saved.encode("a cat"), variables["model"].encode("a cat"))
    before = selfattn.TextEncoder.from_pretrained(tmp_path / "model")
    assert not np.array_equal(saved.encode("a cat"), before.encode("a cat"))
    assert all(
        (EXAMPLES / path).resolve().exists() for path in re.findall(r"\]\(\.\./examples/(.+?)\)", page)
    )
    assert (EXAMPLES.parent / "docs" / "training" / "stacking.svg").exists()
