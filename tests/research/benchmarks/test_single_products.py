"""The products that are timed are those of a training step, and each contender computes them."""

import numpy as np
import pytest

from research.benchmarks.single_products import products, timer_of


def test_a_step_has_the_products_of_its_gradients():
    forward, for_kernel, *rest = products(32)
    assert forward == (32, 784, 300, False, False) and for_kernel == (784, 32, 300, True, False)
    assert len(rest) == 6 and sum(2 * m * k * n for m, k, n, *_ in products(32)) == 2 * 32 * (2 * 784 * 300 + 3 * 300 * 100 + 3 * 100 * 10)


@pytest.mark.parametrize("product", [(3, 5, 4, False, False), (3, 5, 4, True, False), (3, 5, 4, False, True)])
def test_contenders_agree(product):
    found = {who: timer_of(who, product)(3) for who in ("xla", "graph", "numpy")}
    assert found["numpy"].shape == (3, 4)
    for other in found.values():
        np.testing.assert_allclose(other, found["numpy"], rtol=1e-5)
