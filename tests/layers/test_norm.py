# SPDX-License-Identifier: Apache-2.0
"""LayerNorm and RMSNorm."""

import numpy as np
import pytest
from support.layer_makers import D_MODEL, norm, same_bits, words

from selfattn import reference
from selfattn.layers import (
    LayerNorm,
    RMSNorm,
)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms_are_their_specification(rng, kind):
    one, x = norm(rng, kind), words(rng, 3, 5)
    np.testing.assert_allclose(one(x), reference.norm(x.astype(np.float64), one), rtol=1e-5, atol=1e-6)
    same_bits(one(x[0, 1]), one(x)[0, 1])
    assert one(words(rng, 0)).shape == (0, D_MODEL)


@pytest.mark.parametrize("eps", [-1e-6, np.nan, np.inf])
def test_eps_must_be_finite_and_not_negative(eps):
    with pytest.raises(ValueError, match="eps="):
        LayerNorm(np.ones(4), eps=eps)


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
@pytest.mark.parametrize("eps", ["x", None, True])
def test_eps_is_a_number(norm, eps):
    with pytest.raises(TypeError, match=f"eps={eps!r} must be a number"):
        norm(np.ones(4), eps=eps)
