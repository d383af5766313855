import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion import (
    Prediction,
    RectifiedFlow,
    VarianceExploding,
    VariancePreservingCosine,
    clean,
    noise,
    predict,
    recover,
    velocity,
)
from genjax.diffusion.targets import combine

TARGETS = [clean, noise, velocity]
BATCH, SHAPE = 7, (3, 2)


@pytest.fixture
def example(float64):
    random = np.random.default_rng(0)
    x, z = random.standard_normal((2, BATCH, *SHAPE))
    return jnp.asarray(x), jnp.asarray(z), jnp.linspace(0.05, 0.95, BATCH)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_yields_data_and_noise(process, target, example):
    x, z, t = example
    prediction = recover(process, target, process.corrupt(x, z, t), combine(process, target, x, z, t), t)
    # The solve amplifies float64's rounding, 1e-16, by sigma/alpha or its inverse: at most 100.
    np.testing.assert_allclose(prediction.clean, x, atol=1e-13)
    np.testing.assert_allclose(prediction.noise, z, atol=1e-13)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_yields_the_same_velocity(process, target, example):
    x, z, t = example
    prediction = recover(process, target, process.corrupt(x, z, t), combine(process, target, x, z, t), t)
    expected = combine(process, velocity, x, z, t)
    np.testing.assert_allclose(prediction.velocity(process, t), expected, rtol=1e-11, atol=1e-12)


def test_values_of_targets(process, example):
    x, z, t = example
    tail = np.asarray(t)[:, None, None]
    derivative = {
        RectifiedFlow: z - x,
        VariancePreservingCosine: np.pi / 2 * (np.cos(np.pi / 2 * tail) * z - np.sin(np.pi / 2 * tail) * x),
        VarianceExploding: 0.01 * 5000**tail * np.log(5000) * z,
    }[type(process)]
    np.testing.assert_array_equal(combine(process, clean, x, z, t), x)
    np.testing.assert_array_equal(combine(process, noise, x, z, t), z)
    np.testing.assert_allclose(combine(process, velocity, x, z, t), derivative, rtol=1e-12, atol=1e-12)


def test_velocity_of_rectified_flow_by_data_and_by_score(example):
    """(x_t − x̂)/t = −t·score − x̂, with the score of data N(0, s²) under its own variance."""
    _, _, t = example
    process, s = RectifiedFlow(), 0.5
    x_t = jnp.asarray(np.random.default_rng(1).standard_normal((BATCH, *SHAPE)))
    tail = t[:, None, None]
    variance = (1 - tail) ** 2 * s**2 + tail**2
    score, x_hat = -x_t / variance, (1 - tail) * s**2 / variance * x_t
    result = recover(process, clean, x_t, x_hat, t).velocity(process, t)
    np.testing.assert_allclose(result, (x_t - x_hat) / tail, atol=1e-13)
    np.testing.assert_allclose(result, -tail * score - x_hat, atol=1e-13)


@pytest.mark.parametrize("end, singular", [(0.0, clean), (1.0, noise)])
@pytest.mark.parametrize("kind", [RectifiedFlow, VariancePreservingCosine])
@pytest.mark.parametrize("target", TARGETS)
def test_ends_where_a_target_loses_half_of_the_prediction(kind, target, end, singular):
    x, z, t = jnp.full((1, 2), 0.5), jnp.full((1, 2), 2.0), jnp.array([end])
    process = kind()
    prediction = recover(process, target, process.corrupt(x, z, t), combine(process, target, x, z, t), t)
    if target is singular:
        assert not np.all(np.isfinite(prediction.clean) & np.isfinite(prediction.noise))
    else:
        np.testing.assert_allclose(prediction.clean, x, atol=1e-6)
        np.testing.assert_allclose(prediction.noise, z, atol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_variance_exploding_has_no_singular_end(target, end, float64):
    x, z, t = jnp.full((1, 2), 0.5), jnp.full((1, 2), 2.0), jnp.array([end])
    process = VarianceExploding()
    prediction = recover(process, target, process.corrupt(x, z, t), combine(process, target, x, z, t), t)
    np.testing.assert_allclose(prediction.clean, x, atol=1e-12)
    np.testing.assert_allclose(prediction.noise, z, atol=1e-12)


@pytest.mark.parametrize("target", TARGETS)
def test_predict_scales_the_input_and_passes_conditioning_on(process, target):
    seen = []

    def apply(x, t, label, extra):
        seen.append((x, t, label, extra))
        return jnp.ones_like(x)

    x_t, t = 3 * jnp.ones((2, *SHAPE)), jnp.array([0.25, 0.5])
    prediction = predict(apply, process, target)(x_t, t, "label", "extra")
    ((x, time, *conditioning),) = seen
    deviation = np.sqrt(1 + (0.01 * 5000 ** np.asarray(t)) ** 2)
    scale = 1 / deviation if isinstance(process, VarianceExploding) else np.ones(2)
    np.testing.assert_allclose(x, 3 * scale[:, None, None] * np.ones_like(x), rtol=1e-5)
    np.testing.assert_array_equal(time, t)
    assert conditioning == ["label", "extra"]
    # The answer is consistent with what was given: x_t, unscaled, and the network's output.
    restored = process.corrupt(prediction.clean, prediction.noise, t)
    np.testing.assert_allclose(restored, x_t, rtol=1e-4)
    output = combine(process, target, prediction.clean, prediction.noise, t)
    np.testing.assert_allclose(output, jnp.ones_like(x_t), rtol=1e-4)


def test_predictions_pass_through_transformations():
    prediction = Prediction(jnp.ones((2, 3)), jnp.zeros((2, 3)))
    doubled = jax.jit(lambda p: jax.tree.map(lambda a: 2 * a, p))(prediction)
    assert isinstance(doubled, Prediction) and doubled.variance is None
    np.testing.assert_array_equal(doubled.clean, 2)
