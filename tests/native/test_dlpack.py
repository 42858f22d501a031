# SPDX-License-Identifier: Apache-2.0
"""Arrays of other libraries, read where they lie: every field of a DLPack capsule."""

import ctypes
import gc
import sys

import ml_dtypes
import numpy as np
import pytest
from support.arrays import LAYOUTS

from selfattn._native.dlpack import from_dlpack

FLOAT, BFLOAT, COMPLEX = 2, 4, 5
CPU, CUDA, CUDA_HOST = 1, 2, 3


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Managed(ctypes.Structure):
    _fields_ = (("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", DELETER))


class Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", DELETER),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


KEPT = []  # the tensors: a view may outlive the object that it was made from


class Producer:
    """A library with one tensor, every field of which can be chosen; counts how often it is given back."""

    def __init__(self, array, *, versioned=True, strides=True, offset=0, flags=0, major=1, minor=0, **fields):
        self.array, self.deleted, self.device = array, 0, fields.get("device_type", CPU)
        sizes = ctypes.c_int64 * array.ndim
        steps = sizes(*(stride // array.itemsize for stride in array.strides)) if strides else None
        fields = {
            "data": array.ctypes.data - offset,
            "device_type": CPU,
            "ndim": array.ndim,
            "code": FLOAT,
            "bits": 8 * array.itemsize,
            "lanes": 1,
            "byte_offset": offset,
        } | fields
        tensor = Tensor(shape=sizes(*array.shape), strides=steps, **fields)
        deleter = DELETER(self.delete)
        if versioned:
            self.managed = Versioned(major, minor, None, deleter, flags, tensor)
        else:
            self.managed = Managed(tensor, None, deleter)
        KEPT.append(self)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        self.name = b"dltensor_versioned" if versioned else b"dltensor"
        self.capsule = new(ctypes.addressof(self.managed), self.name, None)

    def delete(self, address):
        assert address == ctypes.addressof(self.managed)
        self.deleted += 1

    def __dlpack_device__(self):
        return (self.device, 0)

    def __dlpack__(self, *, max_version=None):
        assert max_version == (1, 0)
        return self.capsule


class FromBefore:
    """A producer that does not know `max_version`."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, stream=None):
        return self.array.__dlpack__(stream=stream)


NUMPY_DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")


@pytest.mark.parametrize("wrap", [lambda a: a, FromBefore])
@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_every_dtype_is_shared_and_written_through(dtype, wrap):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    taken = from_dlpack(wrap(array))
    assert taken.dtype == array.dtype
    assert type(taken) is np.ndarray
    np.testing.assert_array_equal(taken, array)
    assert np.shares_memory(taken, array)
    taken[1, 2] = 0
    assert array[1, 2] == 0


IN_RECORDS = {"packed_record", "rows_in_records"}  # DLPack's strides are in elements


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - IN_RECORDS))
def test_arrays_are_taken_as_they_lie(rng, layout):
    array = LAYOUTS[layout](rng.standard_normal((2, 3, 4)).astype(np.float32))
    taken = from_dlpack(array)
    assert taken.strides == array.strides
    assert taken.ctypes.data == array.ctypes.data
    assert taken.flags.writeable == array.flags.writeable
    np.testing.assert_array_equal(taken, array)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (1, 2, 1, 2, 1, 2)])
def test_every_rank_and_no_elements(shape):
    array = np.ones(shape, np.float32)
    taken = from_dlpack(array)
    assert taken.shape == shape
    assert taken.flags.writeable
    np.testing.assert_array_equal(taken, array)


@pytest.mark.parametrize("versioned", [True, False])
def test_bfloat16(versioned):
    array = np.array([[1.0, -2.5, 3e38], [np.inf, np.nan, 0.0]], ml_dtypes.bfloat16)
    producer = Producer(array.T, code=BFLOAT, versioned=versioned)
    taken = from_dlpack(producer)
    assert taken.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(taken.astype(np.float32), array.T.astype(np.float32))
    taken[0, 0] = 7
    assert array[0, 0] == 7


def test_bfloat16_of_rank_0():
    assert from_dlpack(Producer(np.array(1.5, ml_dtypes.bfloat16), code=BFLOAT)) == 1.5


@pytest.mark.parametrize("versioned", [True, False])
def test_strides_of_null_are_c_order(rng, versioned):
    array = rng.standard_normal((2, 3, 4))
    taken = from_dlpack(Producer(array, strides=False, versioned=versioned))
    assert taken.strides == array.strides
    np.testing.assert_array_equal(taken, array)


def test_expanded_axes_have_stride_0():
    array = np.broadcast_to(np.arange(3, dtype=np.float32), (4, 3))
    taken = from_dlpack(Producer(array))
    assert taken.strides == (0, 4)
    np.testing.assert_array_equal(taken, array)


def test_the_data_begin_at_the_byte_offset():
    array = np.arange(10.0)
    np.testing.assert_array_equal(from_dlpack(Producer(array[4:], offset=32)), array[4:])


def test_only_the_read_only_flag_makes_it_read_only():
    is_copied = 2
    assert not from_dlpack(Producer(np.ones(3), flags=1)).flags.writeable
    assert not from_dlpack(Producer(np.ones(3), flags=1 | is_copied)).flags.writeable
    assert from_dlpack(Producer(np.ones(3), flags=is_copied)).flags.writeable


def test_read_only_bfloat16():
    taken = from_dlpack(Producer(np.ones(3, ml_dtypes.bfloat16), code=BFLOAT, flags=1))
    assert not taken.flags.writeable


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_the_memory_is_given_back_once_and_after_the_last_view(dtype, versioned):
    code = FLOAT if dtype == np.float32 else BFLOAT
    producer = Producer(np.ones((2, 3), dtype), code=code, versioned=versioned)
    taken = from_dlpack(producer)
    view = taken[:, 1:]
    del taken
    gc.collect()
    assert producer.deleted == 0
    assert (view == 1).all()
    del view
    gc.collect()
    assert producer.deleted == 1


def test_an_empty_tensor_without_memory_is_given_back():
    producer = Producer(np.ones((0, 3), np.float32), data=None)
    assert from_dlpack(producer).shape == (0, 3)
    gc.collect()
    assert producer.deleted == 1


def test_a_capsule_without_a_deleter():
    producer = Producer(np.ones(3))
    producer.managed.deleter = DELETER()
    assert from_dlpack(producer).sum() == 3


def test_a_capsule_is_used_once():
    producer = Producer(np.ones(3))
    taken = from_dlpack(producer)
    with pytest.raises(TypeError, match="no DLPack capsule"):
        from_dlpack(producer)
    del taken
    gc.collect()
    assert producer.deleted == 1


REFUSED = {
    "another device": (
        {"device_type": CUDA},
        "^a Producer on CUDA: only the CPU's memory can be read; copy it there first",
    ),
    "an unknown device": ({"device_type": 99}, "^a Producer on device type 99"),
    "complex": ({"code": COMPLEX, "bits": 64}, "complex64.*no NumPy counterpart"),
    "four bits": ({"bits": 4}, "float4 .*no NumPy counterpart"),
    "vectors": ({"bits": 32, "lanes": 2}, "float32x2"),
    "an unknown dtype": ({"code": 12, "bits": 8}, "dtype code 12, bits 8"),
    "a later version": ({"major": 2}, "DLPack version 2"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_refused_stays_the_producers(why):
    fields, message = REFUSED[why]
    producer = Producer(np.ones(3), **fields)
    with pytest.raises(TypeError, match=message):
        from_dlpack(producer)
    assert producer.deleted == 0


def test_the_device_in_the_capsule_counts_too():
    producer = Producer(np.ones(3), device_type=CUDA)
    producer.device = CPU
    with pytest.raises(TypeError, match="CUDA"):
        from_dlpack(producer)


def test_host_memory_pinned_for_a_gpu_is_read():
    assert from_dlpack(Producer(np.ones(3), device_type=CUDA_HOST)).sum() == 3


def test_a_later_minor_version_is_read():
    assert from_dlpack(Producer(np.ones(3), minor=7)).sum() == 3


def test_bfloat16_without_ml_dtypes(monkeypatch):
    producer = Producer(np.ones(3, ml_dtypes.bfloat16), code=BFLOAT)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(TypeError, match="bfloat16 needs ml_dtypes: pip install ml_dtypes"):
        from_dlpack(producer)
    assert producer.deleted == 0


@pytest.mark.parametrize("error", [BufferError("on loan"), RuntimeError("on loan"), TypeError("on loan")])
def test_the_producers_refusal_is_passed_on(error):
    class Refusing(FromBefore):
        def __dlpack__(self, **how):
            raise error

    with pytest.raises(TypeError, match="a Refusing cannot be read in place: on loan"):
        from_dlpack(Refusing(np.ones(3)))


@pytest.mark.parametrize("answer", [None, 7, "dltensor"])
def test_no_capsule(answer):
    class Wrong(FromBefore):
        def __dlpack__(self, **how):
            return answer

    with pytest.raises(TypeError, match="no DLPack capsule"):
        from_dlpack(Wrong(np.ones(3)))


def test_not_an_array():
    with pytest.raises(TypeError, match="a list cannot be read in place"):
        from_dlpack([1.0])
