"""Every loss has its minimum at the exact solution of the Gaussian oracle.

For each method the student is a member of a family that contains the solution. The gradient of the
expected loss vanishes there to 1e-10, and elsewhere it does not. Means over data and noise are
exact, by Gauss–Hermite quadrature, also where a method uses conditional samples.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import (
    S,
    at,
    average_velocity,
    exact_denoiser,
    exact_map,
    exact_velocity,
    mean_gradient,
    nodes,
    perturbed,
    rho,
)
from scipy import stats

from genjax import diffusion
from genjax.diffusion import (
    EDM,
    RectifiedFlow,
    TrigFlow,
    TrigFlowPreconditioning,
    VariancePreservingCosine,
    VariancePreservingLinear,
    targets,
    times,
)
from genjax.distillation import (
    consistency,
    continuous_consistency,
    distances,
    distribution_matching,
    flow_map_matching,
    flow_maps,
    guidance,
    mean_flow,
    pairs,
    pixel_mean_flow,
    progressive,
    regularized_consistency,
    shortcut,
    straightening,
)

KEY = jax.random.key(0)
FLOW = RectifiedFlow()
TRIG = TrigFlow(preconditioning=TrigFlowPreconditioning(data_deviation=S))
PAIR = at(0.8, 0.3)
constant = lambda t: lambda process, u: jnp.full_like(u, t)
squared = distances.squared
plain = lambda g: g  # tangents that are not normalized, so that quadrature is exact


def member(theta):
    """The average velocity of rectified flow, perturbed."""
    return perturbed(average_velocity(FLOW), theta)


def pixel_member(theta):
    """The average velocity of a network that predicts data, perturbed."""
    clean = lambda x, t, s: x - t[:, None] * average_velocity(FLOW)(x, t, s)
    return pixel_mean_flow.average_velocity(perturbed(clean, theta))


def member_map(theta, process=FLOW):
    """The exact map of any process, perturbed so that X(x, t, t) = x stays."""
    u = perturbed(average_velocity(process), theta)
    return lambda x, t, s: x + (s - t)[:, None] * u(x, t, s)


def member_consistency(theta):
    """The network of sCM: f = cos(t)·x − sin(t)·y is the end of the ODE, here x itself."""
    y = lambda x, t: ((jnp.cos(t) - 1) / jnp.sin(t))[:, None] * x
    return lambda x, t: perturbed(y, theta)(S * x, t)


def teacher(process=FLOW):
    return consistency.solver_step(exact_denoiser(process), process)


def exact_step(process):
    """The exact solver, of which the tests of losses are independent of step size."""
    return exact_map(process)


def of_denoiser(theta, process, target):
    """A network for `target` whose denoiser is exact at θ = 0."""
    denoiser = exact_denoiser(process)

    def apply(x, t):
        p = denoiser(x, t)
        return targets.combine(process, target, p.clean, p.noise, t)

    return perturbed(apply, theta)


def guided_mean_flow(average, theta, x, z):
    """The loss without guidance of a network with two answers, of which `average` is the first."""
    head, labels = perturbed(exact_velocity(FLOW), theta), jnp.zeros(len(x), int)
    return mean_flow.guided_mean_flow_loss(
        KEY,
        lambda x, t, s, *_: (average(x, t, s), head(x, t)),
        x,
        labels,
        labels,
        labels > 0,
        pairs=PAIR,
        max_guidance_scale=1.0,
        distance=squared,
        noise=z,
    )


LOSSES = {
    "mean flow": lambda theta, x, z: mean_flow.mean_flow_loss(
        KEY, member(theta), x, pairs=PAIR, distance=squared, noise=z
    ),
    "mean flow on the diagonal": lambda theta, x, z: mean_flow.mean_flow_loss(
        KEY, member(theta), x, pairs=at(0.6, 0.6), distance=squared, noise=z
    ),
    "improved mean flow": lambda theta, x, z: mean_flow.improved_mean_flow_loss(
        KEY, member(theta), x, pairs=PAIR, distance=squared, noise=z
    ),
    "improved mean flow with a head": lambda theta, x, z: mean_flow.improved_mean_flow_loss(
        KEY,
        member(theta),
        x,
        pairs=PAIR,
        distance=squared,
        noise=z,
        head=perturbed(exact_velocity(FLOW), theta),
    ),
    "pixel mean flow": lambda theta, x, z: mean_flow.improved_mean_flow_loss(
        KEY, pixel_member(theta), x, pairs=PAIR, distance=squared, noise=z
    ),
    "guided mean flow": lambda theta, x, z: guided_mean_flow(member(theta), theta, x, z),
    "guided mean flow, pixels": lambda theta, x, z: guided_mean_flow(
        pixel_member(theta), theta, x, z
    ),
    "Lagrangian": lambda theta, x, z: flow_map_matching.lagrangian_loss(
        KEY, member_map(theta), exact_velocity(FLOW), x, process=FLOW, pairs=PAIR, noise=z
    ),
    "Eulerian": lambda theta, x, z: flow_map_matching.eulerian_loss(
        KEY, member_map(theta), exact_velocity(FLOW), x, process=FLOW, pairs=PAIR, noise=z
    ),
    "semigroup": lambda theta, x, z: flow_map_matching.semigroup_loss(
        KEY, member_map(theta), x, process=FLOW, pairs=PAIR, noise=z
    ),
    "consistency distillation": lambda theta, x, z: consistency.consistency_loss(
        KEY, member_map(theta), x, process=FLOW, pairs=PAIR, teacher=exact_step(FLOW), noise=z
    ),
    "consistency distillation, EDM": lambda theta, x, z: consistency.consistency_loss(
        KEY,
        member_map(theta, EDM()),
        x,
        process=EDM(),
        pairs=at(5.0, 2.0),
        teacher=exact_step(EDM()),
        weighting=consistency.inverse_step,
        noise=z,
    ),
    "trajectory consistency": lambda theta, x, z: consistency.consistency_loss(
        KEY,
        member_map(theta),
        x,
        process=FLOW,
        pairs=PAIR,
        teacher=exact_step(FLOW),
        anywhere=True,
        noise=z,
    ),
    "continuous consistency, training": lambda theta, x, z: (
        continuous_consistency.continuous_consistency_loss(
            KEY,
            member_consistency(theta),
            x,
            process=TRIG,
            times=constant(0.9),
            normalize=plain,
            noise=z,
        )
    ),
    "continuous consistency, distillation": lambda theta, x, z: (
        continuous_consistency.continuous_consistency_loss(
            KEY,
            member_consistency(theta),
            x,
            process=TRIG,
            times=constant(0.9),
            teacher=exact_velocity(TRIG),
            noise=z,
        )
    ),
    "regularized consistency": lambda theta, x, z: (
        continuous_consistency.continuous_consistency_loss(
            KEY,
            member_consistency(theta),
            x,
            process=TRIG,
            times=constant(0.9),
            teacher=exact_velocity(TRIG),
            tangent_rule=regularized_consistency.tangent,
            noise=z,
        )
    ),
    "distilled reflow": lambda theta, x, z: (
        straightening.distilled_reflow_loss(member_map(theta), S * z, z, process=FLOW),
        0,
    ),
    "guidance": lambda theta, x, z: guidance.guidance_loss(
        KEY,
        lambda x, t, w: perturbed(lambda x, t: exact_velocity(FLOW)(x, t) * w[:, None], theta)(
            x, t
        ),
        lambda x, t, w: _scaled(x, t, w),
        x,
        process=FLOW,
        target=targets.velocity,
        times=constant(0.7),
        scales=(1.0, 4.0),
        noise=z,
    ),
}


def _scaled(x, t, w):
    """A prediction whose velocity is w times the exact one."""
    return targets.recover(FLOW, targets.velocity, x, w[:, None] * exact_velocity(FLOW)(x, t), t)


@pytest.mark.parametrize("name", LOSSES)
def test_the_exact_solution_is_where_the_gradient_vanishes(name, float64):
    gradient = mean_gradient(lambda theta, x, z: LOSSES[name](theta, x, z)[0])
    np.testing.assert_allclose(gradient(), 0, atol=1e-10)
    for number, direction in enumerate(np.eye(3)):
        if number == 1 and name == "mean flow on the diagonal":
            continue  # its term is 0 where s = t
        assert np.abs(gradient(0.3 * direction)).max() > 1e-3, direction


def regressions(theta, fixed, x, z):
    """Losses of parameters θ, and by hand regressions on their targets of parameters `fixed`."""
    t, s, gap = jnp.full(len(x), 0.8), jnp.full(len(x), 0.3), 0.5
    x_t, one, flow = FLOW.corrupt(x, z, t), jnp.ones_like(t), dict(pairs=PAIR, noise=z)
    u, older = member(theta), member(fixed)
    jump, old_jump = member_map(theta), member_map(fixed)
    own, old_own = (perturbed(exact_velocity(FLOW), each) for each in (theta, fixed))
    network, old_network = member_consistency(theta), member_consistency(fixed)

    _, change = mean_flow.total_derivative(older, x_t, t, s, older(x_t, t, t))
    slope = jax.jvp(lambda s: jump(x_t, t, s), (s,), (one,))[1]
    along = jax.jvp(lambda x, t: jump(x, t, s), (x_t, t), (old_own(x_t, t), one))[1]
    r = s + gap * jax.random.uniform(jax.random.split(KEY)[1], t.shape)
    trig_x = jnp.cos(0.8) * x + S * jnp.sin(0.8) * z
    trig_v = S * jnp.cos(0.8) * z - jnp.sin(0.8) * x
    y, g = continuous_consistency.tangent(lambda x, t: old_network(x / S, t), trig_x, t, trig_v)
    goal = y / S + g / (jnp.linalg.norm(g, axis=1)[:, None] + 0.1)
    return {
        "improved mean flow": (
            mean_flow.improved_mean_flow_loss(KEY, u, x, distance=squared, **flow)[0],
            squared(u(x_t, t, s) + gap * change - (z - x)),
        ),
        "shortcut": tuple(
            shortcut.shortcut_loss(KEY, u, x, share=1.0, target_apply=target, noise=z)[0]
            for target in (None, older)
        ),
        "Lagrangian": (
            flow_map_matching.lagrangian_loss(KEY, jump, own, x, process=FLOW, **flow)[0],
            squared(slope - old_own(old_jump(x_t, t, s), s)),
        ),
        "Eulerian": (
            flow_map_matching.eulerian_loss(KEY, jump, own, x, process=FLOW, **flow)[0],
            squared(along),
        ),
        "semigroup": (
            flow_map_matching.semigroup_loss(KEY, jump, x, process=FLOW, **flow)[0],
            squared(jump(x_t, t, s) - old_jump(old_jump(x_t, t, r), r, s)),
        ),
        "continuous consistency": (
            continuous_consistency.continuous_consistency_loss(
                KEY, network, x, process=TRIG, times=constant(0.8), noise=z
            )[0],
            squared(network(trig_x / S, t) / S - goal),
        ),
    }


def test_no_gradient_passes_through_a_target(float64):
    """At the exact solution a target's own gradient would go unseen, so θ is away from it."""
    x, z = jax.random.normal(KEY, (2, 4, 3), jnp.float64)
    theta = jnp.array([0.3, -0.2, 0.1])
    gradients = jax.jit(jax.jacfwd(lambda free: regressions(free, theta, x, z)))(theta)
    for name, (found, by_hand) in gradients.items():
        np.testing.assert_allclose(found, by_hand, rtol=1e-9, atol=1e-12, err_msg=name)
        assert jnp.abs(by_hand).max() > 1e-3, name


def test_halving_ends_at_the_map_of_two_teacher_steps(float64):
    """The student's one step equals two steps of DDIM, whatever the teacher."""
    process = VariancePreservingCosine()
    denoiser = lambda x, t: diffusion.recover(process, targets.v, x, jnp.sin(x), t)
    x = jax.random.normal(KEY, (5, 3), jnp.float64)
    t, middle, s = (jnp.full(5, a) for a in (0.9, 0.7, 0.5))
    goal = progressive.two_step_target(denoiser, process, x, t, middle, s)
    one = process.corrupt(goal.clean, goal.noise, s)
    two = diffusion.ddim(denoiser, process, x, jnp.array([0.9, 0.7, 0.5]))
    np.testing.assert_allclose(one, two, atol=1e-12)
    np.testing.assert_allclose(process.corrupt(goal.clean, goal.noise, t), x, atol=1e-12)


@pytest.mark.parametrize("target", [targets.clean, targets.v], ids=lambda t: t.__name__)
def test_halving_has_no_loss_when_the_student_does_two_steps_in_one(target, float64):
    """Also at the first step, from the noise end, and with the paper's weight."""
    process, steps = VariancePreservingCosine(), 4
    teacher = exact_denoiser(process)

    def student(x, t):
        p = progressive.two_step_target(teacher, process, x, t, t - 0.5 / steps, t - 1 / steps)
        return targets.combine(process, target, p.clean, p.noise, t)

    loss = functools.partial(
        progressive.progressive_distillation_loss,
        KEY,
        teacher=teacher,
        x=jnp.asarray(nodes()[0]),
        process=process,
        target=target,
        num_steps=steps,
        weighting=diffusion.weightings.truncated_snr,
    )
    exact, t = loss(apply=student)
    np.testing.assert_allclose(exact, 0, atol=1e-20)
    assert sorted(set(np.asarray(t).tolist())) == [0.25, 0.5, 0.75, 1.0]
    off, t = loss(apply=lambda x, t: student(x, t) + 0.1)
    angle = np.pi / 2 * np.asarray(t)  # an error e of v is an error sin·e of x̂
    weight = np.maximum(1 / np.tan(angle) ** 2, 1)
    weight = weight if target is targets.clean else weight * np.sin(angle) ** 2
    np.testing.assert_allclose(off, 0.1**2 * weight, rtol=1e-9)


def test_shortcuts_teach_the_mean_of_two_halves(float64):
    """At the oracle the halves' mean is exact; elsewhere the target is as by hand."""
    x, z = (jnp.asarray(a) for a in nodes()[:2])
    exact, _ = shortcut.shortcut_loss(
        KEY, average_velocity(FLOW), x, share=1.0, largest=1e9, finest=2**20, noise=z
    )
    t, s = shortcut.shortcut_times(jax.random.split(KEY)[0], len(x), 2**20, 1.0)
    longer = np.asarray(t - s) > 4 / 2**20  # shorter ones are told that they have no length
    np.testing.assert_allclose(exact[longer], 0, atol=1e-20)
    apply = lambda x, t, s: jnp.sin(x) * (1 + t - s)[:, None]
    loss, _ = shortcut.shortcut_loss(KEY, apply, x, share=1.0, finest=8, noise=z)
    t, s = shortcut.shortcut_times(jax.random.split(KEY)[0], len(x), 8, 1.0)
    x_t = FLOW.corrupt(x, z, t)
    middle = (t + s) / 2
    smallest = t - s <= 0.25  # its halves are the finest: told s = t, which is flow matching
    first = apply(x_t, t, jnp.where(smallest, t, middle))
    x_m = jnp.clip(x_t - ((t - s) / 2)[:, None] * first, -4, 4)
    second = apply(x_m, middle, jnp.where(smallest, middle, s))
    by_hand = squared(apply(x_t, t, s) - (first + second) / 2)
    np.testing.assert_allclose(loss, by_hand, atol=1e-12)


def test_a_shortcuts_states_and_targets_are_bounded():
    """kvfrans/shortcut-models:targets_shortcut.py clips x_m and the target to ±4."""
    seen = []

    def apply(x, t, s):
        seen.append(x)
        return jnp.full_like(x, -10.0)

    x = jnp.zeros((8, 3))
    loss, _ = shortcut.shortcut_loss(KEY, apply, x, share=1.0, finest=2, noise=x)
    np.testing.assert_array_equal(seen[1], 4)  # −10 over half of the way from 1 to 0 is 5
    np.testing.assert_allclose(loss, (10 - 4) ** 2)


def test_most_of_a_shortcut_models_batch_is_flow_matching():
    """The same loss as `diffusion.simple_loss` for the same times and noise."""
    x, z = jax.random.normal(KEY, (2, 16, 3))
    apply = lambda x, t, s: jnp.sin(x) + (t + 2 * s)[:, None]
    loss, t = shortcut.shortcut_loss(KEY, apply, x, noise=z)
    simple, _ = diffusion.simple_loss(
        KEY,
        flow_maps.diagonal(apply),
        x,
        process=FLOW,
        target=targets.velocity,
        times=lambda process, u: t,
        noise=z,
    )
    np.testing.assert_array_equal((loss == simple)[2:], True)  # the first eighth learns jumps
    assert not (loss == simple)[:2].any()


def test_a_shortcuts_finest_velocities_are_guided():
    """The longer jumps' targets are as without guidance; the finest halves are w of (1 − w, w)."""
    x, z = jax.random.normal(KEY, (2, 64, 3))
    c, null, scale = jnp.arange(64.0) % 5, jnp.float32(-2.0), 3.0
    apply = lambda x, t, s, c: jnp.sin(x + c[:, None]) * (1 + t - s)[:, None]
    guided = shortcut.guide_finest(apply, null, scale)
    loss, t = shortcut.shortcut_loss(
        KEY, apply, x, c, share=1.0, finest=8, target_apply=guided, noise=z
    )
    t, s = shortcut.shortcut_times(jax.random.split(KEY)[0], len(x), 8, 1.0)
    x_t, middle = FLOW.corrupt(x, z, t), (t + s) / 2
    smallest = np.asarray(t - s) <= 0.25

    def half(x, t, s):
        told = jnp.where(smallest, t, s)
        mean = scale * apply(x, t, told, c) + (1 - scale) * apply(x, t, told, 0 * c + null)
        return jnp.where(smallest[:, None], mean, apply(x, t, told, c))

    first = half(x_t, t, middle)
    x_m = jnp.clip(x_t - ((t - s) / 2)[:, None] * first, -4, 4)
    goal = jnp.clip((first + half(x_m, middle, s)) / 2, -4, 4)
    by_hand = squared(apply(x_t, t, s, c) - goal)
    np.testing.assert_allclose(loss, by_hand, rtol=1e-4, atol=1e-6)  # float32
    plain, _ = shortcut.shortcut_loss(KEY, apply, x, c, share=1.0, finest=8, noise=z)
    assert 0 < smallest.sum() < 64
    np.testing.assert_allclose(loss[~smallest], plain[~smallest], rtol=1e-5)
    assert (jnp.abs(loss - plain)[smallest] > 1e-3).all()


def test_shortcut_times_are_those_of_its_grids():
    t, s = shortcut.shortcut_times(KEY, 4096, 8, 0.5)
    length = np.asarray(t - s)
    assert set(length[:2048].tolist()) == {1.0, 0.5, 0.25}
    assert (length[2048:] == 0).all()
    assert np.asarray(t).min() > 0 and np.asarray(t).max() == 1 and np.asarray(s).min() == 0
    ratio = np.asarray(t)[:2048] / length[:2048]
    np.testing.assert_array_equal(ratio, np.round(ratio))
    with pytest.raises(ValueError, match="power of two"):
        shortcut.shortcut_times(KEY, 8, 6, 0.5)
    with pytest.raises(ValueError, match="share=0.125 of 7 examples is less than one, so no jump"):
        shortcut.shortcut_loss(KEY, lambda x, t, s: x, jnp.zeros((7, 3)))


def test_mean_flow_on_the_diagonal_is_flow_matching():
    """The same loss as `diffusion.simple_loss` for the same times and noise, exactly."""
    x, z = jax.random.normal(KEY, (2, 6, 3))
    apply = lambda x, t, s: jnp.sin(x) + t[:, None]
    law = lambda key, process, count: (jnp.linspace(0.1, 0.9, count),) * 2
    loss, t = mean_flow.mean_flow_loss(KEY, apply, x, pairs=law, distance=squared, noise=z)
    simple, _ = diffusion.simple_loss(
        KEY,
        flow_maps.diagonal(apply),
        x,
        process=FLOW,
        target=targets.velocity,
        times=lambda process, u: t,
        noise=z,
    )
    np.testing.assert_array_equal(loss, simple)


def test_losses_with_derivatives_take_networks_and_data_of_bfloat16():
    x, label = jnp.ones((4, 3)), jnp.zeros(4)
    network = lambda x, t, s, *told: (x + (t - s)[:, None]).astype(jnp.bfloat16)
    twice = lambda *inputs: 2 * (network(*inputs),)
    losses = (
        mean_flow.mean_flow_loss(KEY, network, x.astype(jnp.bfloat16), pairs=PAIR)[0],
        mean_flow.improved_mean_flow_loss(KEY, network, x, pairs=PAIR)[0],
        mean_flow.guided_mean_flow_loss(KEY, twice, x, label, label, label > 0, pairs=PAIR)[0],
        flow_map_matching.eulerian_loss(
            KEY,
            lambda x, t, s: x + (t - s)[:, None],
            lambda x, t: x.astype(jnp.bfloat16),
            x,
            process=FLOW,
            pairs=PAIR,
        )[0],
    )
    assert all(jnp.isfinite(loss).all() for loss in losses)


def test_derivatives_along_the_trajectory_are_differences(float64):
    x = jax.random.normal(KEY, (4, 3), jnp.float64)
    v = jnp.cos(x)
    t, s, step = jnp.full(4, 0.8), jnp.full(4, 0.3), 1e-5
    apply = lambda x, t, s: jnp.sin(x) * (t**2 - s)[:, None]
    _, change = mean_flow.total_derivative(apply, x, t, s, v)
    move = lambda h: apply(x + h * v, t + h, s)
    np.testing.assert_allclose(change, (move(step) - move(-step)) / (2 * step), atol=1e-9)


def test_mean_flows_guided_velocity_is_that_of_the_guided_network(float64):
    """With an exact network, ω·v + κ·u_c + (1 − ω − κ)·u_∅ means scale ω/(1 − κ) of the mixture.

    So MeanFlow's fixed point is u = u_∅ + ω/(1 − κ)·(v_c − u_∅), with v_c the velocity (eq. 20).
    """
    x = jax.random.normal(KEY, (4, 3), jnp.float64)
    t = jnp.full(4, 0.5)
    scale, mixing = 1.2, 0.4
    v, null = jnp.sin(x), 0.3 * x
    guided = null + scale / (1 - mixing) * (v - null)
    apply = lambda x, t, s, label: jnp.where(
        label[:, None] == 1, jnp.concatenate([guided, guided]), jnp.concatenate([null, null])
    )
    found = mean_flow.guided_velocity(apply, x, t, v, jnp.ones(4), jnp.zeros(4), scale, mixing)
    np.testing.assert_allclose(found, guided, atol=1e-12)


def test_mean_flows_guidance_without_mixing_needs_the_unconditional_network_alone():
    seen = []

    def apply(x, t, s, label):
        seen.append(label)
        return jnp.sin(x)

    x, v = jax.random.normal(KEY, (2, 4, 3))
    null, scale = jnp.zeros(4), jnp.array([1.0, 1.5, 2.0, 3.0])
    found = mean_flow.guided_velocity(apply, x, jnp.full(4, 0.5), v, jnp.ones(4), null, scale)
    expected = jnp.sin(x) + scale[:, None] * (v - jnp.sin(x))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(seen, [null])


def test_improved_mean_flows_scales_have_the_published_median_and_mean():
    u = jnp.linspace(0, 1, 100_001)
    scales = mean_flow.guidance_scales(u)
    np.testing.assert_allclose(jnp.median(scales), 2.828427, rtol=1e-5)
    np.testing.assert_allclose(jnp.trapezoid(scales, u), 3.366288, rtol=1e-4)


def test_consistency_trainings_bias_is_of_the_size_of_the_step(float64):
    """x_r with the same data and noise: E[x_r | x_t] is not the ODE's solution.

    For the oracle the gradient in θ₀ is −2t·E[x_t·(f(x_t) − f(x_r))], a closed form, and of second
    order in the step, so that the loss over t − r has a bias of first order.
    """
    t, gradients = 0.8, []
    for step in (0.1, 0.05):
        r = t - step
        a, b, c, d = (float(f(jnp.asarray(u))) for u in (t, r) for f in (FLOW.alpha, FLOW.sigma))
        covariance = a * c * S**2 + b * d
        rho_t, rho_r = (float(rho(FLOW, jnp.asarray(u))) for u in (t, r))
        predicted = -2 * t * S * (rho_t - covariance / rho_r)
        loss = lambda theta, x, z, r=r: consistency.consistency_loss(
            KEY, member_map(theta), x, process=FLOW, pairs=at(t, r), noise=z
        )[0]
        gradients.append(mean_gradient(loss)()[0])
        np.testing.assert_allclose(gradients[-1], predicted, rtol=1e-9)
    assert 3 < gradients[0] / gradients[1] < 5


@pytest.mark.parametrize(
    ("process", "target", "t", "r"),
    [
        (FLOW, targets.clean, 0.5, 0.0),
        (EDM(), targets.edm, 0.5, 0.0),
        (EDM(), targets.edm, 0.0025, 0.001),  # r lies before the domain, so it counts as 0
        (VariancePreservingLinear(domain=(1e-3, 1.0)), targets.velocity, 0.5, 0.0),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_jump_from_the_clean_end_is_the_identity(process, target, t, r, float64):
    """The goal is x at the clean end, by hand, where target or network time have no value."""
    x, z = jax.random.normal(KEY, (2, 6, 3), jnp.float64)
    network = lambda x, t, s: jnp.sin(x) + (t + s)[:, None]
    student = flow_maps.flow_map(network, process, target)
    start, t_ = jnp.full(6, process.clean_end), jnp.full(6, t)
    own = student(process.corrupt(x, z, t_), t_, start)
    for teacher in (None, lambda x_t, t, r: process.corrupt(x, z, r)):
        loss, _ = consistency.consistency_loss(
            KEY, student, x, process=process, pairs=at(t, r), teacher=teacher, noise=z
        )
        goal = process.corrupt(x, z, start)
        np.testing.assert_allclose(loss, squared(own - goal), rtol=1e-9)


def test_heuns_step_is_ddims_where_it_does_not_exist(float64):
    """From noise alone, and to the clean end, where this denoiser is singular."""

    def denoiser(x, t):
        p = exact_denoiser(FLOW)(x, t)
        return targets.recover(FLOW, targets.clean, x, p.clean, t)

    x, t, r = jnp.ones((3, 2)), jnp.array([1.0, 0.5, 0.8]), jnp.array([0.9, 0.0, 0.6])
    first, second = (consistency.solver_step(denoiser, FLOW, order)(x, t, r) for order in (1, 2))
    np.testing.assert_array_equal(first[:2], second[:2])
    assert jnp.all(jnp.abs(first[2] - second[2]) > 1e-4)


@pytest.mark.parametrize("order", [1, 2])
def test_teachers_steps_have_their_order(order, float64):
    """The error of one step falls as its length to the power order + 1."""
    process = VariancePreservingCosine()
    x, t = jnp.ones((1, 1)), jnp.array([0.6])
    step = consistency.solver_step(exact_denoiser(process), process, order)
    error = [
        float(jnp.abs(step(x, t, t - h) - exact_map(process)(x, t, t - h)).max())
        for h in (0.02, 0.01)
    ]
    assert abs(np.log2(error[0] / error[1]) - (order + 1)) < 0.1
    with pytest.raises(ValueError, match="order is 1"):
        consistency.solver_step(exact_denoiser(process), process, 3)


def test_the_consistency_loss_takes_the_older_student_as_its_target():
    x, z = jax.random.normal(KEY, (2, 6, 3))
    pairs_ = at(0.8, 0.3)
    loss, _ = consistency.consistency_loss(
        KEY,
        exact_map(FLOW),
        x,
        process=FLOW,
        pairs=pairs_,
        target_student=lambda x, t, s: 0 * x,
        weighting=consistency.inverse_step,
        noise=z,
    )
    t = jnp.full(6, 0.8)
    own = exact_map(FLOW)(FLOW.corrupt(x, z, t), t, 0 * t)
    np.testing.assert_allclose(loss, squared(own) / (0.8 - 0.3), rtol=1e-5)


def test_ends_and_middles_of_jumps_and_guidance_scales_are_uniform():
    """Exact students have no loss whatever is drawn, so the gradients do not tell."""
    seen = []

    def student(x, t, s):
        seen.append(np.asarray(s))
        return x

    x, options = jnp.zeros((4000, 1)), dict(process=FLOW, pairs=at(0.8, 0.5))
    consistency.consistency_loss(KEY, student, x, anywhere=True, **options)
    end, same = seen
    np.testing.assert_array_equal(end, same)
    assert stats.kstest(end, stats.uniform(0, 0.5).cdf).pvalue > 1e-3
    seen.clear()
    flow_map_matching.semigroup_loss(KEY, student, x, **options)
    middle, *ends = seen
    np.testing.assert_array_equal(ends, np.full((2, 4000), np.float32(0.5)))
    assert stats.kstest(middle, stats.uniform(0.5, 0.3).cdf).pvalue > 1e-3
    seen.clear()
    guidance.guidance_loss(
        KEY,
        student,
        _scaled,
        x,
        process=FLOW,
        target=targets.velocity,
        times=constant(0.7),
        scales=(1.0, 4.0),
    )
    assert stats.kstest(seen[0], stats.uniform(1, 3).cdf).pvalue > 1e-3


def test_the_tangent_of_continuous_consistency_is_its_closed_form(float64):
    """cos(t)·df/dt along the trajectory, f = cos(t)·x_t − sin(t)·y, by differences.

    For the oracle df/dt = 0: f is constant along the ODE.
    """
    x = jax.random.normal(KEY, (4, 3), jnp.float64)
    t = jnp.array([0.2, 0.7, 1.1, 1.5])
    direction, step = jnp.cos(x), 1e-5
    velocity = lambda x, t: jnp.sin(x) * (1 + t)[:, None]
    f = lambda h: (
        jnp.cos(t + h)[:, None] * (x + h * direction)
        - jnp.sin(t + h)[:, None] * velocity(x + h * direction, t + h)
    )
    slope = jnp.cos(t)[:, None] * (f(step) - f(-step)) / (2 * step)
    for module in (continuous_consistency, regularized_consistency):
        y, g = module.tangent(velocity, x, t, direction)
        np.testing.assert_allclose(g, slope, atol=1e-9)
        np.testing.assert_array_equal(y, velocity(x, t))
        exact = lambda x, t: ((jnp.cos(t) - 1) / jnp.sin(t))[:, None] * x
        along = exact_velocity(TRIG)(x, t)
        np.testing.assert_allclose(module.tangent(exact, x, t, along)[1], 0, atol=1e-12)


def test_before_its_warm_up_the_tangent_has_only_the_stable_term(float64):
    x = jax.random.normal(KEY, (4, 3), jnp.float64)
    t = jnp.array([0.2, 0.7, 1.1, 1.5])
    velocity = lambda x, t: jnp.sin(x)
    g, half, whole = (
        continuous_consistency.tangent(velocity, x, t, 0.5 * x, warmup)[1]
        for warmup in (0.0, 0.5, 1.0)
    )
    np.testing.assert_allclose(g, -(jnp.cos(t)[:, None] ** 2) * (jnp.sin(x) - 0.5 * x), atol=1e-15)
    np.testing.assert_allclose(half, (g + whole) / 2, atol=1e-15)  # the other term grows linearly


def test_rcms_warm_up_is_that_of_its_code(float64):
    """NVlabs/rcm: −cos·√(1 − w²·sin²)·(F − F_teacher) − cos·sin·(w·x + dF/dt), at w = 1/2."""
    x = jax.random.normal(KEY, (4, 3), jnp.float64)
    t = jnp.array([0.2, 0.7, 1.1, 1.5])
    velocity = lambda x, t: jnp.sin(x) * (1 + t)[:, None]
    cos, sin, teacher = jnp.cos(t)[:, None], jnp.sin(t)[:, None], 0.5 * x
    along = jnp.cos(x) * (1 + t)[:, None] * teacher + jnp.sin(x)  # dF/dt
    by_hand = -cos * jnp.sqrt(1 - sin**2 / 4) * (velocity(x, t) - teacher)
    by_hand -= 0.5 * cos * sin * x + cos * sin * along
    _, g = regularized_consistency.tangent(velocity, x, t, teacher, 0.5)
    np.testing.assert_allclose(g, by_hand, atol=1e-14)


def test_tangents_are_normalized_by_example():
    g = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    found = continuous_consistency.normalized(g)
    np.testing.assert_allclose(found, [[3 / 5.1, 4 / 5.1], [0, 0]], rtol=1e-6)


def test_a_learned_weight_is_best_at_minus_the_log_of_the_loss():
    """d/dw (e^w·L − w) = 0 at w = −log L."""
    x, z = jax.random.normal(KEY, (2, 6, 3))

    def loss(w):
        return continuous_consistency.continuous_consistency_loss(
            KEY,
            lambda x, t: jnp.sin(x),
            x,
            process=TRIG,
            times=constant(0.9),
            log_weight=w,
            noise=z,
        )[0]

    unweighted = loss(None)
    best = lambda t: -jnp.log(unweighted)
    np.testing.assert_allclose(loss(best), 1 + jnp.log(unweighted), rtol=1e-5)
    slope = jax.grad(lambda w: loss(lambda t: w)[0])(-jnp.log(unweighted[0]))
    np.testing.assert_allclose(slope, 0, atol=1e-5)


def test_rcms_times_are_those_of_rectified_flow():
    """NVlabs/rcm's mid times 1.5, 1.4, 1.0 and 1.3."""
    found = regularized_consistency.rectified_flow_time(jnp.array([1.5, 1.4, 1.0, 1.3]))
    np.testing.assert_allclose(found, [0.933781, 0.852895, 0.608979, 0.782708], atol=1e-6)


def test_a_rectified_flow_teaches_trigflow_the_same_data(float64):
    """x̂ of TrigFlow from the wrapped network equals x̂ of the flow at the scaled point."""
    process = TrigFlow(preconditioning=TrigFlowPreconditioning(data_deviation=1.0))
    x, t = jax.random.normal(KEY, (4, 3), jnp.float64), jnp.array([0.2, 0.7, 1.1, 1.5])
    network = lambda x, t: jnp.sin(x) * (1 + t)[:, None]
    wrapped = diffusion.predict(
        regularized_consistency.as_trigflow(network), process, targets.velocity
    )
    flow = diffusion.predict(network, FLOW, targets.velocity)
    scaled = x / (jnp.cos(t) + jnp.sin(t))[:, None]
    ours, theirs = wrapped(x, t), flow(scaled, regularized_consistency.rectified_flow_time(t))
    np.testing.assert_allclose(ours.clean, theirs.clean, atol=1e-12)
    np.testing.assert_allclose(ours.noise, theirs.noise, atol=1e-12)


def test_perceptual_losses_compare_what_the_average_velocity_says_of_the_data():
    x, z = jax.random.normal(KEY, (2, 3, 4))
    t = jnp.array([0.2, 0.79, 0.9])
    x_t = FLOW.corrupt(x, z, t)
    loss = pixel_mean_flow.perceptual_loss(lambda a, b: squared(a - b), x, x_t, t, z - x)
    np.testing.assert_allclose(loss, 0, atol=1e-12)  # x_t − t·(z − x) = x
    loss = pixel_mean_flow.perceptual_loss(lambda a, b: squared(a - b), x, x_t, t, z)
    np.testing.assert_allclose(loss[:2], squared(t[:, None] * x)[:2], rtol=1e-5)
    assert loss[2] == 0  # near noise


def test_a_student_told_the_scale_equals_the_two_call_teacher(float64):
    """No loss where the student computes what guidance computes, at every scale."""
    conditional, null = lambda x, t: jnp.sin(x), lambda x, t: 0.3 * x
    student = lambda x, t, w: null(x, t) + w[:, None] * (conditional(x, t) - null(x, t))
    denoiser = lambda x, t, label: targets.recover(
        FLOW,
        targets.velocity,
        x,
        jnp.where(label[:, None] == 1, conditional(x, t), null(x, t)),
        t,
    )
    teacher = lambda x, t, w: diffusion.guide(denoiser, jnp.ones(4), jnp.zeros(4), w)(x, t)
    x = jax.random.normal(KEY, (4, 3), jnp.float64)
    loss = functools.partial(
        guidance.guidance_loss,
        KEY,
        guided=teacher,
        x=x,
        process=FLOW,
        target=targets.velocity,
        times=times.uniform,
        scales=(1.0, 8.0),
    )
    np.testing.assert_allclose(loss(apply=student)[0], 0, atol=1e-24)
    assert loss(apply=lambda x, t, w: student(x, t, w) + 0.1)[0].min() > 1e-3


def test_pairs_of_a_straight_flow_are_straight():
    """∫‖(z − x) − v‖² dt is 0 for the straight line of one pair, and grows with what v adds."""
    x, z = jax.random.normal(KEY, (2, 4, 3))
    grid = jnp.linspace(1, 0, 9)
    path = jnp.stack([FLOW.corrupt(x, z, jnp.full(4, t)) for t in grid])
    straight = lambda x_t, t: z - x + x_t - FLOW.corrupt(x, z, t)  # at the point of the time
    assert straightening.straightness(straight, x, z, path, grid).max() < 1e-12
    bent = straightening.straightness(lambda x_t, t: z - x + t[:, None], x, z, path, grid)
    np.testing.assert_allclose(bent, np.mean(np.asarray(grid[:-1]) ** 2), rtol=1e-5)


@pytest.mark.parametrize("process", [FLOW, EDM(), TRIG], ids=lambda p: type(p).__name__)
def test_a_distilled_reflow_jumps_from_what_its_teacher_started_from(process, float64):
    """The pairs' noise has deviation 1, the process' noise the deviation sigma."""
    z = jax.random.normal(KEY, (6, 3), jnp.float64)
    end, start = jnp.full(6, process.domain[1]), jnp.full(6, process.clean_end)
    x = exact_map(process)(process.sigma(end)[:, None] * z, end, start)
    loss = straightening.distilled_reflow_loss(exact_map(process), x, z, process=process)
    np.testing.assert_allclose(loss, 0, atol=1e-20)


def test_distances_are_their_formulas():
    d = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(distances.squared(d), [12.5, 0])
    c = 0.00054 * np.sqrt(3072)
    assert abs(c - 0.02993) < 5e-6  # published for CIFAR-10
    image = jnp.full((1, 32, 32, 3), 5e-4)  # whose norm is about c, so that c matters
    expected = np.sqrt(3072 * 5e-4**2 + c**2) - c
    np.testing.assert_allclose(distances.pseudo_huber(image), expected, rtol=1e-5)
    np.testing.assert_allclose(distances.adaptive(d), [25 / 25.01, 0], rtol=1e-6)
    np.testing.assert_allclose(distances.adaptive(d, power=0.5), [25 / 25.01**0.5, 0], rtol=1e-6)
    slope = jax.grad(lambda d: distances.adaptive(d).sum())(d)
    np.testing.assert_allclose(slope[0], [6 / 25.01, 8 / 25.01], rtol=1e-5)  # no gradient below


def losses_of(x, apply, apply_to, **options):
    """Return a thunk for each loss of data, by name: of networks of (x, t) and of (x, t, s)."""
    ordered = functools.partial(pairs.ordered, times=times.uniform)
    student = flow_maps.flow_map(apply_to, FLOW, targets.velocity)
    teacher = diffusion.predict(lambda x, t: x, FLOW, targets.velocity)
    of_pairs = dict(process=FLOW, pairs=ordered, **options)
    of_targets = dict(process=FLOW, target=targets.velocity, **options)
    trigflow = dict(process=TRIG, times=times.uniform, **options)
    flow = dict(pairs=ordered, **options)
    return {
        "mean flow": lambda: mean_flow.mean_flow_loss(KEY, apply_to, x, **flow),
        "improved": lambda: mean_flow.improved_mean_flow_loss(KEY, apply_to, x, **flow),
        "shortcut": lambda: shortcut.shortcut_loss(KEY, apply_to, x, share=0.5, **options),
        "consistency": lambda: consistency.consistency_loss(KEY, student, x, **of_pairs),
        "semigroup": lambda: flow_map_matching.semigroup_loss(KEY, student, x, **of_pairs),
        "progressive": lambda: progressive.progressive_distillation_loss(
            KEY, apply, teacher, x, num_steps=4, **of_targets
        ),
        "imitation": lambda: guidance.imitation_loss(
            KEY, apply, teacher, x, times=times.uniform, **of_targets
        ),
        "continuous": lambda: continuous_consistency.continuous_consistency_loss(
            KEY, apply, x, **trigflow
        ),
    }


PLAIN = lambda x, t: x, lambda x, t, s: x
NAMES = losses_of(None, *PLAIN).keys()


@pytest.mark.parametrize("name", NAMES)
def test_an_output_that_would_broadcast_is_refused(name, unchecked_annotations):
    narrow = lambda x, t: x[:, :1], lambda x, t, s: x[:, :1]
    with pytest.raises(ValueError, match=r"returns shape \([24], 1\); it must return that of x"):
        jax.eval_shape(losses_of(jnp.ones((4, 2)), *narrow)[name])


@pytest.mark.parametrize("name", NAMES)
def test_bytes_and_noise_that_would_broadcast_are_refused(name, unchecked_annotations):
    with pytest.raises(ValueError, match="data are floats; got uint8: convert them"):
        jax.eval_shape(losses_of(jnp.ones((4, 2), jnp.uint8), *PLAIN)[name])
    with pytest.raises(ValueError, match=r"noise has shape \(1, 2\); .* that of x, \(4, 2\)"):
        jax.eval_shape(losses_of(jnp.ones((4, 2)), *PLAIN, noise=jnp.ones((1, 2)))[name])


DENOISER = diffusion.predict(lambda x, t: x, FLOW, targets.velocity)
TEACHINGS = {
    "progressive": lambda network, x, t: progressive.two_step_target(
        network, FLOW, x, t, t / 2, t / 4
    ),
    "consistency": lambda network, x, t: consistency.solver_step(network, FLOW)(x, t, t / 2),
    "flow map": lambda network, x, t: flow_maps.ddim_map(network, FLOW)(x, t, t / 2),
    "imitation": lambda network, x, t: guidance.imitation_loss(
        KEY, network, network, x, process=FLOW, target=targets.velocity, times=times.uniform
    ),
    "real": lambda network, x, t: distribution_matching.score_difference(
        network, DENOISER, FLOW, x, t
    ),
    "fake": lambda network, x, t: distribution_matching.score_difference(
        DENOISER, network, FLOW, x, t
    ),
}


@pytest.mark.parametrize("name", TEACHINGS)
def test_a_network_is_no_teacher(name, unchecked_annotations):
    with pytest.raises(ValueError, match="returns a Prediction, and this one a .*Array.* predict"):
        TEACHINGS[name](lambda x, t: x, jnp.ones((4, 2)), jnp.full(4, 0.8))


def test_bytes_are_no_samples_of_a_reflow(unchecked_annotations):
    student = lambda x, t, s: x
    with pytest.raises(ValueError, match="data are floats; got uint8"):
        straightening.distilled_reflow_loss(
            student, jnp.ones((4, 2), jnp.uint8), jnp.ones((4, 2)), process=FLOW
        )


def test_continuous_consistency_is_of_trigflow(unchecked_annotations):
    """Its sines and cosines of t are those of TrigFlow alone."""
    with pytest.raises(ValueError, match="is for TrigFlow; got RectifiedFlow: take TrigFlow"):
        continuous_consistency.continuous_consistency_loss(
            KEY,
            lambda x, t: x,
            jnp.zeros((2, 1)),
            process=diffusion.RectifiedFlow(),
            times=constant(0.9),
        )
