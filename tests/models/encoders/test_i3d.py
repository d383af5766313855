import jax
import jax.numpy as jnp
import pytest

from genjax.models.encoders.i3d import I3D, i3d_features


@pytest.fixture(scope="module")
def variables():
    videos = jax.ShapeDtypeStruct((1, 9, 224, 224, 3), jnp.float32)
    return jax.eval_shape(I3D().init, jax.random.key(0), videos)


def test_parameter_count(variables):
    """The count of the public weights: 12,287,264, and 400 classes of 1,025 parameters."""
    count = sum(a.size for a in jax.tree.leaves(variables["params"]))
    assert count == 12_287_264 + 400 * 1_025


@pytest.mark.parametrize("channels", [1, 3])
def test_features_of_any_size(variables, channels):
    videos = jnp.zeros((2, 17, 32, 20, channels))
    assert jax.eval_shape(i3d_features, variables, videos).shape == (2, 400)


def test_unsuitable_videos(variables):
    with pytest.raises(ValueError, match="9 or more frames of 224x224 pixels: take longer"):
        jax.eval_shape(i3d_features, variables, jnp.zeros((2, 8, 32, 32, 3)))
    with pytest.raises(ValueError, match="2 channels; expected 1 or 3"):
        jax.eval_shape(i3d_features, variables, jnp.zeros((2, 9, 32, 32, 2)))
