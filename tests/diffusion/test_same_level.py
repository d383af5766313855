"""Denoisers and networks of one process as those of another, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import diffusion
from genjax.diffusion import (
    EDM,
    RectifiedFlow,
    SameLevel,
    TrigFlow,
    VariancePreservingCosine,
    targets,
)
from genjax.distillation.continuous_consistency import continuous_consistency_loss
from tests.distillation import gaussian

BASES = [RectifiedFlow(), EDM(), VariancePreservingCosine()]
IDS = ["RectifiedFlow", "EDM", "VariancePreservingCosine"]
X, T = jax.random.normal(jax.random.key(0), (4, 3)), jnp.array([0.1, 0.6, 1.2, 1.5])


@pytest.mark.parametrize("base", BASES, ids=IDS)
def test_a_gaussians_denoiser_is_that_of_the_other_process(base):
    process = TrigFlow(domain=(0.0, 1.55))  # EDM's 80 is the level of arctan(160) = 1.5645
    converted = diffusion.at_same_level(gaussian.exact_denoiser(base), base, process)
    found, expected = converted(X, T), gaussian.exact_denoiser(TrigFlow())(X, T)
    np.testing.assert_allclose(found.clean, expected.clean, rtol=2e-5)
    np.testing.assert_allclose(found.noise, expected.noise, rtol=2e-5)


def test_more_noise_than_the_base_knows_is_refused():
    """The base's time would be infinite, and the network's answer NaN."""
    with pytest.raises(ValueError, match="TrigFlow ends in noise alone, and EDM at a log-SNR"):
        diffusion.at_same_level(gaussian.exact_denoiser(EDM()), EDM(), TrigFlow())


def exact_network(base, target):
    """The network that is trained on `base` in closed form, fed as its preconditioning says."""

    def network(x, time):
        t = jnp.exp(4 * time) if isinstance(base, EDM) else time
        x_t = x / base.preconditioning.input_scale(base, t)[:, None]
        prediction = gaussian.exact_denoiser(base)(x_t, t)
        return targets.combine(base, target, prediction.clean, prediction.noise, t)

    return network


@pytest.mark.parametrize(
    ("base", "target"),
    [(RectifiedFlow(), targets.velocity), (EDM(), targets.edm)],
    ids=["RectifiedFlow", "EDM"],
)
def test_a_network_of_one_process_serves_another(base, target):
    process = TrigFlow(preconditioning=SameLevel(base=base, data_deviation=0.5))
    network = exact_network(base, target)
    found = diffusion.predict(network, process, targets.of_base(base, target))(X, T)
    expected = gaussian.exact_denoiser(process)(X, T)
    np.testing.assert_allclose(found.clean, expected.clean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.noise, expected.noise, rtol=1e-4, atol=1e-5)


def test_both_ends_of_time_are_those_of_the_other_process():
    """Where alpha or sigma is 0, there is no division by it."""
    time, factor = RectifiedFlow().at_level_of(TrigFlow(), jnp.array([0.0, np.pi / 2]))
    np.testing.assert_array_equal(time, [0.0, 1.0])
    np.testing.assert_allclose(factor, [1.0, 1 / 0.5], rtol=1e-6)


def test_continuous_consistency_of_a_rectified_flows_network_is_that_of_its_velocity():
    """The loss of the exact network of rectified flow is that of TrigFlow's exact velocity."""
    base, own = RectifiedFlow(), TrigFlow()
    fed = TrigFlow(preconditioning=SameLevel(base=base, data_deviation=0.5))
    options = dict(times=diffusion.uniform, noise=2 * X[::-1])
    target = targets.of_base(base, targets.velocity)
    found, _ = continuous_consistency_loss(
        jax.random.key(1), exact_network(base, targets.velocity), X, process=fed, target=target,
        **options,
    )  # fmt: skip
    velocity = lambda x, t: gaussian.exact_velocity(own)(x * 0.5, t)  # TrigFlow feeds x_t/s
    expected, _ = continuous_consistency_loss(
        jax.random.key(1), velocity, X, process=own, **options
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_karras_law_has_the_quantiles_of_karras_grid():
    grid = diffusion.karras_grid(EDM(), 19)[:-1]
    found = diffusion.karras(EDM(), jnp.linspace(1.0, 0.0, 19))
    np.testing.assert_allclose(found, grid, rtol=2e-5)
