# SPDX-License-Identifier: Apache-2.0
"""How it is measured: verify, choose each contender's fastest variant, interleave, take medians."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

ENOUGH = 0.75  # of the most so far: two threads on one core give half, beside another process two thirds
PATIENCE = 60.0  # seconds

Measured = TypeVar("Measured")


class Workload(Protocol):
    tolerance: float

    def error(self, result: Any) -> float: ...


class WrongResultError(Exception):
    """A contender computed something else, so there is nothing to time."""


@dataclass(frozen=True)
class Choice:
    """The variant that represents a contender, and how far its result is from the expected one."""

    variant: str
    call: Callable[[], Any]
    error: float
    seconds: float
    rejected: dict[str, str]


def choose(
    variants: Mapping[str, Callable[[], Callable[[], Any]]], workload: Workload, min_time: float
) -> Choice:
    """The fastest of the variants that verify; WrongResultError, with every reason, when none does."""
    choices, rejected = [], {}
    for name, build in variants.items():
        try:
            call = build()
            error = verified_error(call, workload)
        except Exception as failure:  # a variant that this version of a library lacks fails in its own way
            rejected[name] = f"{type(failure).__name__}: {failure}"
            continue
        choices.append(Choice(name, call, error, rough_seconds(call, min_time), rejected))
    if not choices:
        raise WrongResultError("; ".join(f"{name}: {reason}" for name, reason in rejected.items()))
    return min(choices, key=lambda choice: choice.seconds)


def verified_error(call: Callable[[], Any], workload: Workload) -> float:
    error = workload.error(call())
    if not error <= workload.tolerance:  # written so that NaN fails too
        raise WrongResultError(f"error {error:.1e} is above the tolerance {workload.tolerance:.1e}")
    return error


def rough_seconds(call: Callable[[], Any], min_time: float) -> float:
    """Seconds per call, from one call when that is long enough to measure."""
    wait_until_idle()
    first = timed(call, 1)
    if first >= min_time:
        return first
    return timed(call, max(1, round(min_time / first)))


def timed(call: Callable[[], Any], calls: int) -> float:
    """Seconds per call over so many calls in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def wait_until_idle(patience: float = 0.25) -> None:
    """Sleep until no thread of this process runs.

    The workers of some thread pools spin for a while after a call; they would take a core from whoever
    is measured next.
    """
    deadline = time.perf_counter() + patience
    while time.perf_counter() < deadline:
        before = time.process_time()
        time.sleep(0.004)
        if time.process_time() - before < 0.0005:
            return


@dataclass
class Watch:
    """Has measured again what was measured while the machine gave less than it can.

    Virtual processors may share a core for seconds at a time, and only the speed tells. `speed` measures it
    on all threads for a moment, before and after.
    """

    speed: Callable[[], float]
    patience: float = PATIENCE  # in all, of waiting and of what is measured again
    lost: float = 0.0  # seconds of these
    best: float = 0.0
    repeated: int = 0
    slow: int = 0  # measured at less, and kept, because patience was at its end

    def at_full_speed(self) -> bool:
        wait_until_idle()  # a library's spinning workers are not the machine's doing
        now = self.speed()
        self.best = max(self.best, now)
        return now >= ENOUGH * self.best

    def undisturbed(self, measure: Callable[[], Measured]) -> Measured:
        """What `measure` returns between two moments at full speed."""
        while True:
            start = time.perf_counter()
            before = self.at_full_speed()
            if before or self.lost >= self.patience:
                result = measure()
                if before and self.at_full_speed():
                    return result
                if self.lost >= self.patience:
                    self.slow += 1
                    return result
                self.repeated += 1
            self.lost += time.perf_counter() - start

    def counts(self) -> dict[str, int]:
        """How often since they were last asked for."""
        counts = {"repeated": self.repeated, "slow": self.slow}
        self.repeated = self.slow = 0
        return counts


def rotations(names: Sequence[str], rounds: int) -> Iterator[tuple[str, ...]]:
    """The order of each round. Every round starts one later, so that nobody always follows the same load."""
    for first in range(rounds):
        split = first % max(1, len(names))
        yield (*names[split:], *names[:split])


def interleave(
    choices: Mapping[str, Choice], rounds: int, min_time: float, watch: Watch | None = None
) -> dict[str, list[float]]:
    """Seconds per call of every contender in every round, A B C, B C A, C A B, ...

    One turn is a batch of calls that lasts at least min_time, after a warm-up call that is not counted
    (skipped when a single call is that long: its own first part is the warm-up). A watch repeats rounds.
    """
    batches = {name: math.ceil(min_time / choice.seconds) for name, choice in choices.items()}
    seconds: dict[str, list[float]] = {name: [] for name in choices}
    for order in rotations(list(choices), rounds):
        measure = partial(one_round, choices, batches, order)
        for name, each in (watch.undisturbed(measure) if watch else measure()).items():
            seconds[name].append(each)
    return seconds


def one_round(
    choices: Mapping[str, Choice], batches: Mapping[str, int], order: Sequence[str]
) -> dict[str, float]:
    seconds = {}
    for name in order:
        wait_until_idle()
        if batches[name] > 1:
            choices[name].call()
        seconds[name] = timed(choices[name].call, batches[name])
    return seconds


def in_turns(
    calls: Mapping[str, Callable[[], Any]], rounds: int, min_time: float, watch: Watch | None = None
) -> dict[str, list[float]]:
    """`interleave` of calls of which nothing else is known."""
    choices = {
        name: Choice(name, call, 0.0, rough_seconds(call, min_time), {}) for name, call in calls.items()
    }
    return interleave(choices, rounds, min_time, watch)


def beside_limit(
    work: Callable[[], float],
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    min_time: float,
    watch: Watch | None = None,
) -> tuple[dict[str, list[float]], list[float]]:
    """`in_turns` of the calls, and the pace of `work` in each round among them, in units of 10^9.

    work: returns how much it did, as `machine.multiply_adds`.
    """
    seconds = in_turns({**calls, "limit": work}, rounds, min_time, watch)
    done = work()
    return seconds, [done / each / 1e9 for each in seconds.pop("limit")]


def summarize(seconds: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles over the rounds; `spread` is the interquartile range over the median."""
    low, median, high = (float(x) for x in np.percentile(seconds, (25, 50, 75)))
    return {
        "median_seconds": median,
        "quartile_seconds": [low, high],
        "spread": (high - low) / median,
        "round_seconds": list(seconds),
    }
