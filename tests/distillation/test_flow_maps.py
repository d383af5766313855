"""Flow maps against closed forms, and their samplers against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import S, exact_map, exact_velocity, rho

from genjax import diffusion
from genjax.diffusion import EDM, RectifiedFlow, TrigFlow, VariancePreservingCosine, targets
from genjax.distillation import flow_maps

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (4, 3))
T, R = jnp.array([0.9, 0.7, 0.4, 0.2]), jnp.array([0.5, 0.1, 0.4, 0.05])
PROCESSES = [RectifiedFlow(), VariancePreservingCosine(), TrigFlow(), EDM()]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(
    "target", [targets.velocity, targets.v, targets.clean], ids=lambda t: t.__name__
)
def test_a_map_to_the_time_it_starts_from_changes_nothing(process, target):
    X_map = flow_maps.flow_map(lambda x, t, s: jnp.sin(7 * x), process, target)
    np.testing.assert_array_equal(X_map(X, T, T), X)
    assert jnp.abs(X_map(X, T, T / 2) - X).max() > 0.01


def test_rectified_flow_moves_along_the_average_velocity():
    u = lambda x, t, s: jnp.sin(x) + (t - s)[:, None]
    found = flow_maps.flow_map(u, RectifiedFlow(), targets.velocity)(X, T, R)
    np.testing.assert_allclose(found, X + (R - T)[:, None] * u(X, T, R), atol=1e-6)


def test_trigflow_turns_by_the_difference_of_angles():
    """cos(t − s)·x_t − sin(t − s)·F for data of deviation 1, of which s = 0 is sCM's f."""
    process = TrigFlow(preconditioning=diffusion.TrigFlowPreconditioning(data_deviation=1.0))
    F = lambda x, t, s: jnp.cos(3 * x)
    found = flow_maps.flow_map(F, process, targets.velocity)(X, T, R)
    angle = (T - R)[:, None]
    np.testing.assert_allclose(found, jnp.cos(angle) * X - jnp.sin(angle) * F(X, T, R), atol=1e-6)


def test_the_network_is_told_the_time_where_the_jump_ends():
    seen = []

    def apply(x, t, s, label):
        seen.append((t, s, label))
        return x

    flow_maps.flow_map(apply, EDM(), targets.edm)(X, T, jnp.zeros(4), jnp.arange(4))
    (t, s, label), *_ = seen
    np.testing.assert_allclose(t, np.log(T) / 4, rtol=1e-6)
    np.testing.assert_allclose(s, np.log(0.002) / 4, rtol=1e-6)  # the start of EDM's domain, not −∞
    np.testing.assert_array_equal(label, jnp.arange(4))


@pytest.mark.parametrize(
    "process", [RectifiedFlow(), VariancePreservingCosine()], ids=lambda p: type(p).__name__
)
def test_the_velocity_is_the_maps_slope_where_it_starts(process, float64):
    """By central differences of a map whose network depends on both times."""
    x, t = jnp.asarray(X, jnp.float64), jnp.asarray(T, jnp.float64)
    apply = lambda x, t, s: jnp.sin(x) * (1 + t - 2 * s)[:, None]
    jump = flow_maps.flow_map(apply, process, targets.v)
    step = 1e-4
    slope = (jump(x, t, t + step) - jump(x, t, t - step)) / (2 * step)
    found = flow_maps.velocity(apply, process, targets.v)(x, t)
    np.testing.assert_allclose(found, slope, atol=1e-7)


def test_the_map_of_a_denoiser_ends_at_its_data():
    process = VariancePreservingCosine()
    denoiser = lambda x, t: diffusion.recover(process, targets.v, x, jnp.sin(x), t)
    jump = flow_maps.ddim_map(denoiser, process)
    np.testing.assert_allclose(jump(X, T, jnp.zeros(4)), denoiser(X, T).clean, atol=1e-6)
    ddim = diffusion.ddim(denoiser, process, X, jnp.array([0.9, 0.3]))
    np.testing.assert_allclose(jump(X, jnp.full(4, 0.9), jnp.full(4, 0.3)), ddim, atol=1e-6)


def test_consistency_models_skip_and_scale_as_published():
    """c_skip and c_out of openai/consistency_models at t = 1 and 80, and f(x, ε) = x."""
    ones = jnp.ones((3, 1))
    t = jnp.array([1.0, 80.0, 0.002])
    zero = flow_maps.consistency_map(lambda x, t: 0 * x, EDM())(ones, t, t)
    one = flow_maps.consistency_map(lambda x, t: 0 * x + 1, EDM())(ones, t, t)
    np.testing.assert_allclose(zero[:2, 0], [0.2006414, 3.906293e-5], rtol=1e-5)
    np.testing.assert_allclose((one - zero)[:2, 0], [0.4463192, 0.4999777], rtol=1e-6)
    np.testing.assert_array_equal(one[2], [1.0])


def test_consistency_models_change_nothing_where_sigma_is_not_the_time():
    """Sigma is 0.01 at the start of this domain, where t is 0."""
    process, x = diffusion.VarianceExploding(), jnp.ones((1, 3))
    start = jnp.zeros(1)
    jump = flow_maps.consistency_map(lambda x, t: 0 * x + 1, process)
    np.testing.assert_array_equal(jump(x, start, start), x)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("steps", [1, 3])
def test_jumps_of_the_exact_map_end_where_one_jump_does(process, steps):
    start, end = process.domain[1], process.clean_end
    times = jnp.linspace(start, end, steps + 1)
    noise = rho(process, jnp.asarray(start)) * X
    samples = flow_maps.jump(exact_map(process), process, noise, times)
    np.testing.assert_allclose(samples, S * X, rtol=1e-5)
    path = flow_maps.jump(exact_map(process), process, noise, times, trajectory=True)
    assert path.shape == (steps + 1, *X.shape)
    np.testing.assert_array_equal(path[0], noise)
    np.testing.assert_array_equal(path[-1], samples)


def _renoised(process, keys, x, low, high, number):
    draw = lambda key: jax.random.normal(jax.random.fold_in(key, number), x.shape[1:])
    z = jax.vmap(draw)(keys)
    scale = process.alpha(high) / process.alpha(low)
    return scale * x + jnp.sqrt(process.sigma(high) ** 2 - (scale * process.sigma(low)) ** 2) * z


@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_noise_leads_back_to_the_grid(gamma):
    """Each step by hand: a jump to (1 − γ)·s, and noise up to s."""
    process = VariancePreservingCosine()
    keys = diffusion.sample_keys(KEY, jnp.arange(4))
    times = jnp.array([1.0, 0.6, 0.3, 0.0])
    jump = lambda x, t, s: jnp.tanh(x) * (1 + t - s)[:, None]
    found = flow_maps.trajectory_consistency(jump, process, X, times, gamma=gamma, keys=keys)
    x = X
    for number, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        low = (1 - gamma) * s
        x = jump(x, jnp.full(4, t), jnp.full(4, low))
        x = _renoised(process, keys, x, low, s, number)
    np.testing.assert_allclose(found, x, atol=1e-6)
    if gamma == 1:
        same = flow_maps.consistency(jump, process, X, times, keys=keys)
        np.testing.assert_allclose(same, found, atol=1e-6)
        # One step to the last time, where no noise is added.
        one = flow_maps.consistency(jump, process, X, jnp.array([1.0, 0.1]), keys=keys)
        np.testing.assert_allclose(one, jump(X, jnp.ones(4), jnp.full(4, 0.1)), atol=1e-6)


@pytest.mark.parametrize("sampler", [flow_maps.jump, flow_maps.consistency])
def test_samples_have_the_type_of_their_noise(sampler):
    process, keys = RectifiedFlow(), diffusion.sample_keys(KEY, jnp.arange(4))
    jump = flow_maps.flow_map(lambda x, t, s: jnp.sin(x), process, targets.velocity)
    sample = lambda noise: sampler(jump, process, noise, jnp.array([1.0, 0.4, 0.0]), keys=keys)
    samples = sample(X.astype(jnp.bfloat16))
    assert samples.dtype == jnp.bfloat16
    np.testing.assert_allclose(samples.astype(float), sample(X), atol=0.05)


@pytest.mark.parametrize("gamma", [-0.1, 1.5])
def test_shares_of_noise_outside_the_unit_interval_are_refused(gamma):
    process, keys = RectifiedFlow(), diffusion.sample_keys(KEY, jnp.arange(4))
    times, jump = diffusion.uniform_grid(process, 2), lambda x, t, s: x
    with pytest.raises(ValueError, match=r"gamma, .* is in \[0, 1\]; got "):
        flow_maps.trajectory_consistency(jump, process, X, times, gamma=gamma, keys=keys)


def test_no_share_of_noise_is_a_jump_along_the_grid():
    """γ = 0 adds σ_s² − σ_s² = 0 of noise. Fused arithmetic rounds that difference below 0."""
    process = VariancePreservingCosine()
    keys = diffusion.sample_keys(KEY, jnp.arange(4))
    times = diffusion.uniform_grid(process, 7)
    jump = lambda x, t, s: jnp.tanh(x) * (1 + t - s)[:, None]
    found = flow_maps.trajectory_consistency(jump, process, X, times, gamma=0.0, keys=keys)
    np.testing.assert_allclose(found, flow_maps.jump(jump, process, X, times), atol=1e-6)


@pytest.mark.parametrize("process", [RectifiedFlow(), EDM()], ids=lambda p: type(p).__name__)
def test_the_stochastic_sampler_keeps_the_law_of_the_data(process):
    """The deviation of 40,000 samples, and what is left of the noise, to five standard errors."""
    count = 40_000
    keys = diffusion.sample_keys(KEY, jnp.arange(count))
    start = process.domain[1]
    noise = rho(process, jnp.asarray(start)) * jax.random.normal(jax.random.key(1), (count, 1))
    times = start * jnp.array([1.0, 0.5, 0.2, 0.0])
    samples = flow_maps.consistency(exact_map(process), process, noise, times, keys=keys)
    assert abs(samples.std() / S - 1) < 5 / np.sqrt(2 * count)
    kept = process.alpha(times[1:-1]) * S / rho(process, times[1:-1])  # the data's share of x_t
    found = np.corrcoef(samples[:, 0], noise[:, 0])[0, 1]
    assert abs(found - np.prod(kept)) < 5 / np.sqrt(count)


def test_samples_do_not_depend_on_their_batch():
    keys = diffusion.sample_keys(KEY, jnp.arange(4))
    times = jnp.array([1.0, 0.5, 0.0])
    whole = flow_maps.consistency(exact_map(RectifiedFlow()), RectifiedFlow(), X, times, keys=keys)
    part = flow_maps.consistency(
        exact_map(RectifiedFlow()), RectifiedFlow(), X[2:], times, keys=keys[2:]
    )
    np.testing.assert_array_equal(whole[2:], part)


def test_noise_without_keys_and_times_outside_are_refused():
    process = RectifiedFlow()
    with pytest.raises(ValueError, match="give keys"):
        flow_maps.consistency(exact_map(process), process, X, jnp.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="RectifiedFlow has times from 0 to 1"):
        flow_maps.jump(exact_map(process), process, X, jnp.array([2.0, 0.0]))


def test_the_exact_velocity_is_the_slope_of_the_exact_map(float64):
    """The oracle of the other tests is checked by differences."""
    process, x = RectifiedFlow(), jnp.asarray(X, jnp.float64)
    t = jnp.asarray(T, jnp.float64)
    jump, step = exact_map(process), 1e-5
    slope = (jump(x, t, t + step) - jump(x, t, t - step)) / (2 * step)
    np.testing.assert_allclose(exact_velocity(process)(x, t), slope, atol=1e-9)


def test_other_processes_and_numbers_of_keys_are_refused(unchecked_annotations):
    """Formulas of consistency models hold for alpha = 1, and are finite for others."""
    with pytest.raises(ValueError, match="alpha = 1, such as EDM; got RectifiedFlow"):
        apply = lambda x, t: x
        jax.jit(lambda x: flow_maps.consistency_map(apply, RectifiedFlow())(x, x[:, 0], 0))(X)
    process, key = RectifiedFlow(), jax.random.key(0)
    for keys in (key, jax.random.split(key, len(X) + 1)):
        with pytest.raises(ValueError, match=f"one per sample .*; got shape .* for {len(X)} sampl"):
            flow_maps.consistency(exact_map(process), process, X, jnp.array([1.0, 0.0]), keys=keys)
