import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from genjax.diffusion import (
    EDM,
    EDMPreconditioning,
    RectifiedFlow,
    TrigFlow,
    VarianceExploding,
    VariancePreservingCosine,
    VariancePreservingLinear,
    VariancePreservingTable,
    clean,
    edm,
    linear_betas,
    log_normal_sigma,
    noise,
    score,
    simple_loss,
    to_domain,
    v,
    velocity,
    weightings,
    zero_terminal_snr,
)
from genjax.diffusion.targets import combine, recover

WEIGHTINGS = {
    "min_snr": functools.partial(weightings.min_snr, gamma=3.0),
    "edm": functools.partial(weightings.edm, data_deviation=0.7),
    "sigmoid": functools.partial(weightings.sigmoid, bias=1.5),
    "p2": functools.partial(weightings.p2, k=0.5, gamma=2.0),
}
TIMES = np.linspace(0.02, 0.98, 13)


def compare(weighting, process, target, expected):
    np.testing.assert_allclose(
        weighting(process, target, to_domain(process, jnp.asarray(TIMES))), expected, rtol=1e-11
    )


def test_min_snr(float64):
    """The weights are those of the three targets in the paper (Hang et al. 2023)."""
    snr = 1 / np.tan(np.pi / 2 * TIMES) ** 2
    for gamma in (5.0, 1.0):
        weighting = functools.partial(weightings.min_snr, gamma=gamma)
        for target, expected in ((clean, 1), (noise, 1 / snr), (v, 1 / (snr + 1))):
            compare(
                weighting, VariancePreservingCosine(), target, np.minimum(snr, gamma) * expected
            )
    # The paper's gamma.
    compare(weightings.min_snr, VariancePreservingCosine(), noise, np.minimum(snr, 5) / snr)
    assert weightings.min_snr(VariancePreservingCosine(), clean, jnp.zeros(1)) == 5  # sigma is 0


def test_edm(float64):
    """λ(σ) = (σ² + σ_d²)/(σ·σ_d)² weights the error of x̂, and λ·c_out² = 1 that of the network."""
    sigma = 0.002 + (80 - 0.002) * TIMES
    compare(weightings.edm, EDM(), clean, (sigma**2 + 0.25) / (sigma * 0.5) ** 2)
    compare(weightings.edm, EDM(), edm, 1)
    for process in (
        EDM(),
        VarianceExploding(),
        RectifiedFlow(),
        VariancePreservingLinear(),
        TrigFlow(),
    ):
        compare(WEIGHTINGS["edm"], process, functools.partial(edm, data_deviation=0.7), 1)


def test_sigmoid(float64):
    """On noise it is sigmoid(b − λ), so on data e^b·sigmoid(λ − b) (Hoogeboom et al. 2024)."""
    log_snr = -2 * np.log(np.tan(np.pi / 2 * TIMES))
    compare(WEIGHTINGS["sigmoid"], VariancePreservingCosine(), noise, expit(1.5 - log_snr))
    compare(
        WEIGHTINGS["sigmoid"], VariancePreservingCosine(), clean, np.exp(1.5) * expit(log_snr - 1.5)
    )
    compare(weightings.sigmoid, VariancePreservingCosine(), noise, expit(-log_snr))


def test_p2(float64):
    snr = (1 - TIMES) ** 2 / TIMES**2
    compare(WEIGHTINGS["p2"], RectifiedFlow(), noise, 1 / (0.5 + snr) ** 2)
    # 1/(1 + SNR).
    compare(weightings.p2, VariancePreservingCosine(), noise, np.sin(np.pi / 2 * TIMES) ** 2)


def test_bounded_velocity(float64):
    """JiT's loss of (x̂ − x_t)/max(t, 0.05), written for the error of x̂ and of x̂'s velocity."""
    bound = np.maximum(TIMES, 0.05)
    compare(weightings.bounded_velocity, RectifiedFlow(), clean, 1 / bound**2)
    compare(weightings.bounded_velocity, RectifiedFlow(), velocity, (TIMES / bound) ** 2)


def test_uniform(every_process):
    t = to_domain(every_process, jnp.asarray(TIMES))
    np.testing.assert_array_equal(weightings.uniform(every_process, velocity, t), 1)


@pytest.mark.parametrize("target", [velocity, v, edm])
@pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS.keys())
def test_weights_are_finite_at_both_ends_of_targets_that_are_regular_there(weighting, target):
    assert np.all(np.isfinite(weighting(RectifiedFlow(), target, jnp.array([0.0, 1.0]))))


@pytest.mark.parametrize("target", [noise, score])
def test_weights_of_the_noise_error_are_their_limits_where_alpha_is_0(target):
    """The weights at SNR = 0 of the papers, whose losses are of the noise."""
    process = VariancePreservingTable(betas=zero_terminal_snr(linear_betas()))
    limits = {"min_snr": 1, "sigmoid": 1, "p2": 1 / 0.5**2}
    for name, expected in limits.items():
        for end in (process, RectifiedFlow()):
            np.testing.assert_allclose(WEIGHTINGS[name](end, target, jnp.ones(1)), expected)


@pytest.mark.parametrize(
    "process",
    [RectifiedFlow(), EDM(preconditioning=EDMPreconditioning(data_deviation=0.7))],
    ids=["flow", "EDM"],
)
@pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS.keys())
def test_the_loss_of_a_denoiser_depends_on_no_target(weighting, process, float64):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 3)))

    def loss(target):
        """Return the loss of the denoiser x̂ = tanh(x_t)/2, through a network for the target."""

        def network(scaled, network_time):
            t = network_time if isinstance(process, RectifiedFlow) else jnp.exp(4 * network_time)
            x_t = scaled / process.preconditioning.input_scale(process, t)[:, None]
            answer = recover(process, clean, x_t, jnp.tanh(x_t) / 2, t)
            return combine(process, target, answer.clean, answer.noise, t)

        losses, _ = simple_loss(
            jax.random.key(0),
            network,
            x,
            process=process,
            target=target,
            times=log_normal_sigma,
            weighting=weighting,
        )
        return losses

    expected = loss(clean)
    for target in (noise, velocity, v, score, edm, lambda process, t: (1 + t, 2 - t)):
        # Differences of quantities that are up to 10 times as large, at noise levels e^±4.
        np.testing.assert_allclose(loss(target), expected, rtol=1e-9)


@pytest.mark.parametrize("deviation", [0.5, 1.3])
def test_a_zero_network_has_an_expected_edm_loss_of_one_at_every_sigma(deviation):
    """The data have the deviation that EDM assumes."""
    x = deviation * jnp.asarray(np.random.default_rng(1).standard_normal((4000, 50)), jnp.float32)
    losses, t = simple_loss(
        jax.random.key(0),
        lambda x, t: jnp.zeros_like(x),
        x,
        process=EDM(preconditioning=EDMPreconditioning(data_deviation=deviation)),
        target=edm,
        times=log_normal_sigma,
        weighting=weightings.edm,
    )
    for part in np.array_split(np.argsort(t), 8):  # from the smallest sigma to the largest
        # Deviation of the mean of that many squares of unit normals.
        error = np.sqrt(2 / (len(part) * 50))
        np.testing.assert_allclose(np.asarray(losses)[part].mean(), 1, atol=4 * error)
