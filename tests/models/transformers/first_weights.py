"""Checks of a network's first weights against the distributions in the authors' code."""

import jax
import numpy as np

from genjax.devices.mesh import variable_path


def check(params, xavier, small):
    """Check uniform kernels, normal arrays of deviation 0.02, scales of 1, and zeros elsewhere.

    Args:
        xavier: inputs and outputs of the authors' matrix, by the layer. Its numbers lie within
            √(6/(inputs + outputs)) of 0 (Glorot & Bengio 2010, equation 16).
        small: paths of the normal arrays.
    """
    for path, a in jax.tree.leaves_with_path(params):
        name, a = variable_path(path), np.asarray(a, np.float64)
        layer, _, kind = name.rpartition("/")
        if kind == "kernel" and layer in xavier:
            # The largest of 512 and more uniform numbers is below the bound by at most 3 %, but for
            # one time in 10⁶.
            bound = np.sqrt(6 / sum(xavier[layer]))
            assert 0.97 * bound < np.abs(a).max() < 1.0001 * bound, name
        elif name in small:
            # Five times the deviation 1/√(2·1024) of the deviation of 1,024 numbers.
            np.testing.assert_allclose(a.std(), 0.02, rtol=0.11, err_msg=name)
        else:
            np.testing.assert_array_equal(a, float(kind == "scale"), err_msg=name)
