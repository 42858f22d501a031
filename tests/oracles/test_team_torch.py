"""PyTorch's own OpenMP threads help between its operations, and both compute the same as ever."""

import sys

import pytest
from processes import CALL, HELPERS, run

CODE = """
import torch
torch.set_num_threads(3)
a = torch.ones(600, 600)
torch.softmax(a, -1)
before = os_threads()
for _ in range(50):
    probabilities = torch.softmax(a, -1)
    context = compute(3)
    assert torch.equal(probabilities, torch.full((600, 600), float(probabilities[0, 0])))
    assert np.array_equal(context, compute(1))
print(os_threads() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere nobody lends")
@pytest.mark.parametrize("first", ["torch", "selfattn"])
def test_the_threads_of_torch_help(first):
    prelude = HELPERS + ("import torch\n" + CALL if first == "torch" else CALL)
    always = {"OMP_WAIT_POLICY": "active", "SELFATTN_NUM_THREADS": "3"}
    assert int(run(CODE, prelude=prelude, environ=always)) <= 2
    assert int(run(CODE.replace("range(50)", "range(1)"), prelude=prelude, environ=always)) == 0
    assert int(run(CODE, prelude=prelude, environ=always | {"SELFATTN_OPENMP": "0"})) == 2
