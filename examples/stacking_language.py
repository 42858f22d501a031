# SPDX-License-Identifier: Apache-2.0
"""A small generated language in which several kinds of relation matter at once, for stacking.py.

    often the red king with the pink shoe ( finding the blue key for the grey cat ) drops it

At every "it" five questions are asked. Four are answered by a word that one step finds, each by a rule of its
own; the colour of "it" takes two steps: from "it" to its noun, and from there to the word before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_WORDS = 32

LEXICON = """
people  dog cat bird mouse horse girl boy nurse king queen baker farmer
people  fox bear wolf monk poet singer doctor pilot judge sailor tailor miner
things  ball box key coat lamp book cup stone hat ring rope spoon
things  chair bell drum flute sword map coin crown pen plate shoe wheel
colours red blue green white black brown grey pink yellow purple
"""
PEOPLE, THINGS, COLOURS = (
    [word for line in LEXICON.splitlines() if line.startswith(kind) for word in line.split()[1:]]
    for kind in ("people", "things", "colours")
)
VERBS = ("finds", "finding"), ("drops", "dropping"), ("takes", "taking"), ("hides", "hiding")
BRACKETS = {"(": ")", "[": "]", "{": "}"}
LINKS, ADVERBS = ("near", "for"), ("today", "often", "later", "here")

ANSWERS = {  # the questions asked at every "it", and the words that may answer them
    "what": THINGS,  # the noun that "it" refers to: the thing named last
    "who": PEOPLE,  # the subject of the verb before "it": the person named first, whatever stands between
    "whom": PEOPLE,  # near or for whom: the person named last, who is another
    "bracket": ["", *BRACKETS],  # the innermost one that is open, "" for none
    "colour": COLOURS,  # that of "it": the word before the noun
}
VOCABULARY = [
    *("the", "it", "and", "with", *LINKS, *ADVERBS, *COLOURS, *PEOPLE, *THINGS),
    *(form for verb in VERBS for form in verb),
    *(bracket for pair in BRACKETS.items() for bracket in pair),
]


@dataclass(frozen=True)
class Sentence:
    """The i-th "it" is words[places[i]], and words[answers[question][i]] answers; None: nothing does."""

    words: list[str]
    places: list[int]
    answers: dict[str, list[int | None]]

    def answered(self, question: str) -> list[str]:
        """The words that answer; "" where nothing does."""
        return ["" if i is None else self.words[i] for i in self.answers[question]]


class Writer:
    """Writes one sentence and notes at every "it" which earlier words are the answers."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.words: list[str] = []
        self.known: dict[str, int | None] = {}  # the answer to each question, as of now
        self.open: list[int] = []  # brackets
        self.sentence = Sentence(self.words, [], {question: [] for question in ANSWERS})

    def write(self) -> Sentence:
        """adverb* person "with" thing aside? predicate (aside? "and" predicate)*"""
        for _ in range(self.one_of(range(4))):
            self.say(self.one_of(ADVERBS))
        self.known["who"] = self.person()
        self.say("with")
        self.thing()
        self.aside(0.5)
        self.predicate()
        while self.perhaps(0.7):
            self.aside(0.6)
            self.say("and")
            self.predicate()
        return self.sentence

    def predicate(self, form: int = 0) -> None:
        """verb (thing | "it") (("near" | "for") person)?"""
        self.say(self.one_of(VERBS)[form])
        if "whom" in self.known and self.perhaps(0.7):
            self.ask(self.say("it"))
        else:
            self.thing()
        if "whom" not in self.known or self.perhaps(0.5):
            self.say(self.one_of(LINKS))
            self.known["whom"] = self.person()

    def aside(self, probability: float) -> None:
        """open predicate aside? predicate? close; its verbs are participles, so the subject stays."""
        if len(self.open) == 2 or not self.perhaps(probability):
            return
        bracket = self.one_of(list(BRACKETS))
        self.open.append(self.say(bracket))
        self.predicate(form=1)
        self.aside(0.5)
        if self.perhaps(0.5):
            self.predicate(form=1)
        self.open.pop()
        self.say(BRACKETS[bracket])

    def thing(self) -> None:
        """ "the" colour thing"""
        self.say("the")
        self.known["colour"] = self.say(self.one_of(COLOURS))
        self.known["what"] = self.say(self.one_of(THINGS))

    def person(self) -> int:
        """ "the" colour? person, never the subject again; the colour could be mistaken for that of "it"."""
        self.say("the")
        if self.perhaps(0.8):
            self.say(self.one_of(COLOURS))
        subject = {self.words[self.known["who"]]} if "who" in self.known else set()
        return self.say(self.one_of([word for word in PEOPLE if word not in subject]))

    def ask(self, place: int) -> None:
        self.known["bracket"] = self.open[-1] if self.open else None
        self.sentence.places.append(place)
        for question, answers in self.sentence.answers.items():
            answers.append(self.known[question])

    def say(self, word: str) -> int:
        """Where the word stands."""
        self.words.append(word)
        return len(self.words) - 1

    def one_of(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.rng.random() * len(choices))]  # rng.choice takes much longer

    def perhaps(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)


def write_sentences(count: int, rng: np.random.Generator) -> list[Sentence]:
    """Sentences of at most MAX_WORDS words with an "it" or more, no two of them the same."""
    found: dict[str, Sentence] = {}
    while len(found) < count:
        sentence = Writer(rng).write()
        if sentence.places and len(sentence.words) <= MAX_WORDS:
            found[" ".join(sentence.words)] = sentence
    return list(found.values())
