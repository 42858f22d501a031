# SPDX-License-Identifier: Apache-2.0
"""PyTorch's tensors where they lie: taken without a copy, and written through as out=."""

import ml_dtypes
import numpy as np
import pytest
from support.accuracy import assert_same_bits
from support.arrays import qkv

import selfattn
from selfattn._native.dlpack import from_dlpack

torch = pytest.importorskip("torch")

DTYPES = {
    torch.float16: np.float16,
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.int8: np.int8,
    torch.int16: np.int16,
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.uint8: np.uint8,
    torch.uint16: np.uint16,
    torch.uint32: np.uint32,
    torch.uint64: np.uint64,
    torch.bool: np.bool_,
}

LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(0, 2),
    "sliced": lambda t: t[1:, ::2, 1],
    "expanded": lambda t: t[:, :, :1].expand(-1, -1, 5),
    "rank 0": lambda t: t[1, 2, 3],
    "rank 1 of one": lambda t: t[1, 2, 3:],
    "empty": lambda t: t[:0],
}


def assert_same_memory(taken, tensor):
    itemsize = tensor.element_size()
    assert taken.shape == tuple(tensor.shape)
    assert taken.ctypes.data == tensor.data_ptr() or taken.size == 0
    if taken.size > 1:
        assert taken.strides == tuple(itemsize * stride for stride in tensor.stride())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_are_taken_as_they_lie(dtype, layout):
    tensor = LAYOUTS[layout](torch.arange(24).reshape(2, 3, 4).to(dtype))
    taken = from_dlpack(tensor)
    assert taken.dtype == DTYPES[dtype]
    assert_same_memory(taken, tensor)
    np.testing.assert_array_equal(taken.astype(np.float64), tensor.to(torch.float64).numpy())


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_see_what_is_written(dtype):
    tensor = torch.zeros(2, 3, dtype=dtype)
    taken = from_dlpack(tensor)
    taken[1, 2] = 1
    assert tensor[1, 2] == 1
    tensor[0, 0] = 1
    assert taken[0, 0] == 1


def test_the_memory_outlives_the_tensor():
    taken = from_dlpack(torch.full((1000, 1000), 3.0))
    torch.zeros(1000, 1000)  # would take the place of memory given back too early
    assert (taken == 3).all()


def test_empty_tensors():
    assert from_dlpack(torch.empty(0, 3, dtype=torch.bfloat16)).shape == (0, 3)


def test_a_tensor_that_requires_gradients_says_detach():
    tensor = torch.ones(3, requires_grad=True)
    with pytest.raises(TypeError, match=r"a Tensor cannot be read in place: .*pass x\.detach\(\)"):
        from_dlpack(tensor)
    assert_same_memory(from_dlpack(tensor.detach()), tensor)
    parameter = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(TypeError, match=r"a Parameter cannot .*detach\(\)"):
        from_dlpack(parameter)


REFUSED = {
    "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "no memory": lambda: torch.ones(3, device="meta"),
    "float8": lambda: torch.ones(3).to(torch.float8_e5m2),
}


@pytest.mark.parametrize("what", REFUSED)
def test_tensors_without_a_numpy_counterpart(what):
    with pytest.raises(TypeError, match="a Tensor "):
        from_dlpack(REFUSED[what]())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_attention_over_tensors(rng, dtype):
    """The same bits as over arrays, also into out=, which is what comes back."""
    tensors = [torch.from_numpy(array).to(dtype) for array in qkv(rng, q_len=7, kv_len=9)]
    expected = selfattn.attention(*(from_dlpack(tensor) for tensor in tensors))
    assert_same_bits(selfattn.attention(*tensors), expected)
    room = torch.zeros(2, 2, 16, 7, dtype=dtype)
    out = room.transpose(2, 3)
    assert selfattn.attention(*tensors, out=out) is out
    assert_same_bits(from_dlpack(room).swapaxes(2, 3), expected)
