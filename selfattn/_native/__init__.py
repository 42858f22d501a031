# SPDX-License-Identifier: Apache-2.0
"""The compiled modules, each with a stub beside it.

runtime.pyx    links the C sources; instruction sets, threads, interruption, what the others have in common
operator.pyx   attention and its gradients
pointwise.pyx  linear layers, norms, activations, rotary angles, and their gradients
encoder.pyx    the layer loop
dlpack.pyx     arrays of other libraries
"""
