# SPDX-License-Identifier: Apache-2.0
"""PyTorch's own OpenMP threads help between its operations where asked; both compute the same as ever."""

import platform
import sys

import pytest
from support.processes import CALL, HELPERS, run

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"),
    reason="nobody lends there",
)
CODE = """
import torch
torch.set_num_threads(3)
a = torch.ones(600, 600)
torch.softmax(a, -1)
before = os_threads()
compute(3)
print(os_threads() - before)  # workers of ours
for _ in range(50):
    probabilities = torch.softmax(a, -1)
    context = compute(3)
    assert torch.equal(probabilities, torch.full((600, 600), float(probabilities[0, 0])))
    assert np.array_equal(context, compute(1))
"""
FORK = """
compute(2)
in_child(lambda: torch.softmax(torch.ones(600, 600), -1))
"""


@pytest.mark.parametrize("first", ["torch", "selfattn"])
def test_the_threads_of_torch_help(first):
    prelude = HELPERS + ("import torch\n" + CALL if first == "torch" else CALL)
    assert int(run(CODE, prelude=prelude, environ={"SELFATTN_OPENMP": "1"})) == 0
    assert int(run(CODE, prelude=prelude)) == 2


def test_what_torch_has_not_begun_it_can_begin_in_a_child():
    run(FORK, prelude=HELPERS + "import torch\n" + CALL, environ={"SELFATTN_OPENMP": "1"})
