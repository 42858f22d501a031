# SPDX-License-Identifier: Apache-2.0
"""What the layer loop borrows from the operator's bindings."""

from selfattn._native.runtime cimport sa_attention_options

cdef int set_options(sa_attention_options *args, options, ptrdiff_t head_dim) except -1
