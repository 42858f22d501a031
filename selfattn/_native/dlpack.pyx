# SPDX-License-Identifier: Apache-2.0
"""Arrays of other libraries, read where they lie: the DLPack protocol (https://dmlc.github.io/dlpack), CPU side.

numpy.from_dlpack would do but for bfloat16, which NumPy does not know; so the capsule is read here."""

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_SetName
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

import numpy as np

# ---- the ABI: dlpack.h, version 1 ----

cdef struct DLDevice:
    int32_t device_type
    int32_t device_id

cdef struct DLDataType:
    uint8_t code
    uint8_t bits
    uint16_t lanes

cdef struct DLTensor:
    void *data
    DLDevice device
    int32_t ndim
    DLDataType dtype
    int64_t *shape
    int64_t *strides  # in elements; NULL: C order
    uint64_t byte_offset

cdef struct DLManagedTensor:
    DLTensor dl_tensor
    void *manager_ctx
    void (*deleter)(DLManagedTensor *) noexcept

cdef struct DLPackVersion:
    uint32_t major
    uint32_t minor

cdef struct DLManagedTensorVersioned:
    DLPackVersion version
    void *manager_ctx
    void (*deleter)(DLManagedTensorVersioned *) noexcept
    uint64_t flags
    DLTensor dl_tensor

cdef uint64_t READ_ONLY = 1  # the flag's bit

cdef dict DEVICES = {
    2: "CUDA", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 9: "VPI", 10: "ROCm", 12: "an extension",
    13: "CUDA managed memory", 14: "oneAPI", 15: "WebGPU", 16: "Hexagon", 17: "MAIA",
}
cdef tuple HOST = (1, 3, 11)  # the CPU; its pages pinned for CUDA, for ROCm

cdef tuple BFLOAT16 = (4, 16)
cdef dict DTYPES = {  # (code, bits): the dtype that NumPy sees
    (0, 8): np.int8, (0, 16): np.int16, (0, 32): np.int32, (0, 64): np.int64,
    (1, 8): np.uint8, (1, 16): np.uint16, (1, 32): np.uint32, (1, 64): np.uint64,
    (2, 16): np.float16, (2, 32): np.float32, (2, 64): np.float64,
    BFLOAT16: np.uint16,
    (6, 8): np.bool_,
}
cdef dict KINDS = {0: "int", 1: "uint", 2: "float", 3: "handle", 4: "bfloat", 5: "complex", 6: "bool"}


cdef class _Tensor:
    """The owner of a capsule's tensor and the base of the array that shows it; the deleter is called at its end."""

    cdef DLManagedTensor *plain
    cdef DLManagedTensorVersioned *versioned  # one of the two
    cdef dict interface

    @property
    def __array_interface__(self):
        return self.interface

    def __dealloc__(self):
        if self.plain != NULL and self.plain.deleter != NULL:
            self.plain.deleter(self.plain)
        if self.versioned != NULL and self.versioned.deleter != NULL:
            self.versioned.deleter(self.versioned)


def from_dlpack(x):
    """A NumPy view of a CPU tensor of any library with `__dlpack__`: nothing is copied, and the memory lives as long
    as the view. Writable unless the producer says read-only. bfloat16 becomes ml_dtypes.bfloat16.

    Raises TypeError for a tensor on another device, a dtype without a NumPy counterpart (both named), and whatever
    the producer refuses (a PyTorch tensor that requires gradients: pass x.detach()).
    """
    capsule = export(x)
    cdef _Tensor owner = _Tensor()
    cdef DLManagedTensor *plain = NULL
    cdef DLManagedTensorVersioned *versioned = NULL
    cdef DLTensor *tensor
    if PyCapsule_IsValid(capsule, "dltensor_versioned"):
        versioned = <DLManagedTensorVersioned *>PyCapsule_GetPointer(capsule, "dltensor_versioned")
        if versioned.version.major != 1:
            raise TypeError(f"a {type(x).__name__} of DLPack version {versioned.version.major}; version 1 is read here")
        tensor = &versioned.dl_tensor
    elif PyCapsule_IsValid(capsule, "dltensor"):
        plain = <DLManagedTensor *>PyCapsule_GetPointer(capsule, "dltensor")
        tensor = &plain.dl_tensor
    else:
        raise TypeError(f"{type(x).__name__}.__dlpack__() gave {capsule!r}, which is no DLPack capsule")
    if tensor.device.device_type not in HOST:
        raise elsewhere(x, tensor.device.device_type)
    kind = (tensor.dtype.code, tensor.dtype.bits)
    if kind not in DTYPES or tensor.dtype.lanes != 1:
        raise TypeError(f"a {type(x).__name__} of {dtype_name(tensor.dtype)} has no NumPy counterpart: convert it")
    element = bfloat16() if kind == BFLOAT16 else None
    owner.interface = describe(tensor, DTYPES[kind], versioned != NULL and versioned.flags & READ_ONLY)
    # From here on the tensor is ours: a renamed capsule deletes nothing.
    PyCapsule_SetName(capsule, "used_dltensor" if versioned == NULL else "used_dltensor_versioned")
    owner.plain, owner.versioned = plain, versioned
    array = np.asarray(owner)
    return array if element is None else array.view(element)


cdef object export(x):
    """The producer's capsule, versioned if it knows versions."""
    try:
        device = x.__dlpack_device__()[0]
        if device in HOST:
            try:
                return x.__dlpack__(max_version=(1, 0))
            except TypeError:  # a producer from before version 1 does not know the argument
                return x.__dlpack__()
    except Exception as error:
        fix = "; pass x.detach()" if getattr(x, "requires_grad", False) else ""
        raise TypeError(f"a {type(x).__name__} cannot be read in place: {error}{fix}") from error
    raise elsewhere(x, device)


cdef object elsewhere(x, device):
    name = DEVICES.get(device, f"device type {device}")
    return TypeError(f"a {type(x).__name__} on {name}: only the CPU's memory can be read; copy it there first")


cdef str dtype_name(DLDataType dtype):
    lanes = f"x{dtype.lanes}" if dtype.lanes != 1 else ""
    return f"{KINDS.get(dtype.code, f'dtype code {dtype.code}, bits ')}{dtype.bits}{lanes}"


cdef object bfloat16():
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise TypeError("bfloat16 needs ml_dtypes: pip install ml_dtypes, or convert to float32 first") from None
    return bfloat16


cdef dict describe(const DLTensor *tensor, dtype, bint read_only):
    """The tensor as NumPy's array interface, version 3: strides in bytes, the address of the first element."""
    cdef int axis
    itemsize = np.dtype(dtype).itemsize
    strides = None
    if tensor.strides != NULL:
        strides = tuple([tensor.strides[axis] * itemsize for axis in range(tensor.ndim)])
    return {
        "version": 3,
        "typestr": np.dtype(dtype).str,
        "shape": tuple([tensor.shape[axis] for axis in range(tensor.ndim)]),
        "strides": strides,
        "data": (<size_t>tensor.data + tensor.byte_offset, read_only),
    }
