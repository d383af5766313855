import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion import (
    EDM,
    EDMPreconditioning,
    Preconditioning,
    Prediction,
    RectifiedFlow,
    Shifted,
    TrigFlow,
    TrigFlowPreconditioning,
    VarianceExploding,
    VariancePreservingCosine,
    VariancePreservingLinear,
    check_target,
    clean,
    edm,
    noise,
    predict,
    recover,
    score,
    targets,
    to_domain,
    v,
    velocity,
    weightings,
)
from genjax.diffusion.processes import Process
from genjax.diffusion.targets import combine, split_variance

TARGETS = [clean, noise, velocity, v, score, edm]
BATCH, SHAPE = 7, (3, 2)


@pytest.fixture
def example(float64):
    random = np.random.default_rng(0)
    x, z = random.standard_normal((2, BATCH, *SHAPE))
    return jnp.asarray(x), jnp.asarray(z), jnp.linspace(0.05, 0.95, BATCH)


@pytest.mark.parametrize("target", [*TARGETS, lambda process, t: (1 + t, 3 - t)])
def test_every_target_yields_data_noise_and_velocity(every_process, target, example):
    x, z, t = example
    process, t = every_process, to_domain(every_process, t)
    prediction = recover(
        process, target, process.corrupt(x, z, t), combine(process, target, x, z, t), t
    )
    # The solve amplifies float64's rounding, 1e-16, by sigma/alpha or its inverse: at most 200.
    np.testing.assert_allclose(prediction.clean, x, atol=1e-13)
    np.testing.assert_allclose(prediction.noise, z, atol=1e-13)
    expected = combine(process, velocity, x, z, t)
    np.testing.assert_allclose(prediction.velocity(process, t), expected, rtol=1e-11, atol=1e-12)


def test_values_of_targets(process, example):
    x, z, t = example
    tail = np.asarray(t)[:, None, None]
    derivative = {
        RectifiedFlow: z - x,
        VariancePreservingCosine: np.pi
        / 2
        * (np.cos(np.pi / 2 * tail) * z - np.sin(np.pi / 2 * tail) * x),
        VarianceExploding: 0.01 * 5000**tail * np.log(5000) * z,
    }[type(process)]
    np.testing.assert_array_equal(combine(process, clean, x, z, t), x)
    np.testing.assert_array_equal(combine(process, noise, x, z, t), z)
    np.testing.assert_allclose(
        combine(process, velocity, x, z, t), derivative, rtol=1e-12, atol=1e-12
    )


def test_values_of_v_score_and_edm(every_process, example):
    x, z, t = example
    process, t = every_process, to_domain(every_process, t)
    x_t = process.corrupt(x, z, t)
    alpha, sigma = (np.asarray(f(t))[:, None, None] for f in (process.alpha, process.sigma))
    np.testing.assert_allclose(
        combine(process, v, x, z, t), alpha * z - sigma * x, rtol=1e-12, atol=1e-14
    )
    # The score of p(x_t | x) = N(alpha·x, sigma²).
    np.testing.assert_allclose(
        combine(process, score, x, z, t), (alpha * x - x_t) / sigma**2, rtol=1e-11, atol=1e-11
    )
    # EDM in the variable x_t/alpha with noise sigma/alpha, and with c_skip and c_out of the paper's
    # table 1.
    s, ratio = 0.7, sigma / alpha
    c_skip, c_out = s**2 / (ratio**2 + s**2), ratio * s / np.sqrt(ratio**2 + s**2)
    expected = (x - c_skip * x_t / alpha) / c_out
    np.testing.assert_allclose(
        combine(process, functools.partial(edm, data_deviation=s), x, z, t),
        expected,
        rtol=1e-10,
        atol=1e-10,
    )


def test_relations_between_targets(example):
    x, z, t = example
    y = lambda process, target: combine(process, target, x, z, t)
    cosine, trig = (
        VariancePreservingCosine(),
        TrigFlow(preconditioning=TrigFlowPreconditioning(data_deviation=0.7)),
    )
    np.testing.assert_allclose(
        y(cosine, velocity), np.pi / 2 * y(cosine, v), rtol=1e-12, atol=1e-13
    )
    one = functools.partial(edm, data_deviation=1.0)
    np.testing.assert_allclose(y(cosine, one), -y(cosine, v), rtol=1e-12, atol=1e-13)
    # TrigFlow's network times the data's deviation is its velocity (Lu & Song 2025). The sign is
    # EDM's.
    trig_edm = functools.partial(edm, data_deviation=0.7)
    np.testing.assert_allclose(-0.7 * y(trig, trig_edm), y(trig, velocity), rtol=1e-12, atol=1e-13)


def test_edm_has_unit_variance_at_every_time(every_process, float64):
    """For independent x of deviation s and z of deviation one the variance is c²s² + d² = 1.

    x_t says nothing about the target, because they are uncorrelated: alpha·c·s² + sigma·d = 0.
    """
    process, t = every_process, to_domain(every_process, jnp.linspace(0.02, 0.98, 9))
    c, d = edm(process, t, data_deviation=0.7)
    np.testing.assert_allclose(0.49 * c**2 + d**2, 1, rtol=1e-12)
    np.testing.assert_allclose(0.49 * process.alpha(t) * c + process.sigma(t) * d, 0, atol=1e-12)


@pytest.mark.parametrize(
    "process",
    [
        EDM(preconditioning=EDMPreconditioning(data_deviation=2.0)),
        TrigFlow(preconditioning=TrigFlowPreconditioning(data_deviation=2.0)),
        RectifiedFlow(preconditioning=Preconditioning(data_deviation=2.0)),
        Shifted(base=EDM(preconditioning=EDMPreconditioning(data_deviation=2.0)), shift=3.0),
    ],
    ids=lambda process: type(process).__name__,
)
def test_target_weighting_and_input_share_one_data_deviation(process, float64):
    """For data of deviation 2 the target has variance 1, the weight 1, and the input variance 1."""
    t = to_domain(process, jnp.linspace(0.02, 0.98, 9))
    c, d = edm(process, t)
    np.testing.assert_allclose(4 * c**2 + d**2, 1, rtol=1e-12)
    np.testing.assert_allclose(weightings.edm(process, edm, t), 1, rtol=1e-12)
    if not isinstance(process, RectifiedFlow | Shifted):
        variance = 4 * process.alpha(t) ** 2 + process.sigma(t) ** 2
        scale = process.preconditioning.input_scale(process, t)
        np.testing.assert_allclose(scale**2 * variance, 1, rtol=1e-12)


def test_velocity_of_rectified_flow_by_data_and_by_score(example):
    """It is (x_t − x̂)/t = −t·score − x̂, with the score of data N(0, s²)."""
    _, _, t = example
    process, s = RectifiedFlow(), 0.5
    x_t = jnp.asarray(np.random.default_rng(1).standard_normal((BATCH, *SHAPE)))
    tail = t[:, None, None]
    variance = (1 - tail) ** 2 * s**2 + tail**2
    score, x_hat = -x_t / variance, (1 - tail) * s**2 / variance * x_t
    result = recover(process, clean, x_t, x_hat, t).velocity(process, t)
    np.testing.assert_allclose(result, (x_t - x_hat) / tail, atol=1e-13)
    np.testing.assert_allclose(result, -tail * score - x_hat, atol=1e-13)


def table_of_singular_ends():
    """Return (process, target, marks) from the table of the module's docstring."""
    rows = [
        line.strip("|").split("|") for line in targets.__doc__.splitlines() if line.startswith("|")
    ]
    (_, *names), _, *rows = [[cell.strip() for cell in row] for row in rows]
    assert [*names] == [target.__name__ for target in TARGETS]
    return [
        (name, target, marks.split())
        for name, *cells in rows
        for target, marks in zip(TARGETS, cells, strict=True)
    ]


def test_the_table_has_every_process(processes_by_name):
    unshifted = {name for name in processes_by_name if not name.startswith("Shifted")}
    assert {name for name, *_ in table_of_singular_ends()} == unshifted


@pytest.mark.parametrize("name, target, marks", table_of_singular_ends())
def test_singular_ends_are_those_of_the_table(name, target, marks, processes_by_name, float64):
    process = processes_by_name[name]
    x, z = jnp.full((1, 2), 0.5), jnp.full((1, 2), 2.0)
    for end, own in ((process.clean_end, {"z", "∞"}), (process.domain[1], {"x"})):
        mark, t = own.intersection(marks), jnp.array([end])
        alpha, sigma = process.alpha(t), process.sigma(t)
        c, d = target(process, t)
        prediction = recover(
            process, target, process.corrupt(x, z, t), combine(process, target, x, z, t), t
        )
        if not mark:
            np.testing.assert_allclose(prediction.clean, x, atol=1e-11)  # 1e-16·sigma/alpha, twice
            np.testing.assert_allclose(prediction.noise, z, atol=1e-11)
            check_target(process, target, t)
            continue
        assert not np.all(np.isfinite(prediction.clean) & np.isfinite(prediction.noise))
        assert np.isinf(d) == (mark == {"∞"})
        assert {"z": sigma, "x": alpha, "∞": 1 / d}[mark.pop()] == 0
        with pytest.raises(
            ValueError, match=f"the target {target.__name__} is singular at t = {end:g}"
        ):
            check_target(process, target, t)


def test_velocity_of_linear_rates_diverges_as_an_inverse_root(float64):
    t = jnp.array([1e-12, 1e-10])
    slope = VariancePreservingLinear().sigma_prime(t)  # of √(0.1·t)
    np.testing.assert_allclose(slope, np.sqrt(0.1 / t) / 2, rtol=1e-7)


def test_a_singular_target_is_refused():
    with pytest.raises(
        ValueError,
        match=r"noise is singular at t = 1 of RectifiedFlow: alpha = 0.*the data.*domain",
    ):
        check_target(RectifiedFlow(), noise, jnp.linspace(1.0, 0.0, 5)[:-1])
    with pytest.raises(ValueError, match=r"clean is .* t = 0 .*sigma = 0, .*the noise"):
        check_target(VariancePreservingCosine(), clean, jnp.linspace(0.0, 1.0, 5))
    with pytest.raises(
        ValueError,
        match=r"velocity is .* t = 0 .*coefficients \(.*inf\) of data and noise are not finite",
    ):
        check_target(VariancePreservingLinear(), velocity, jnp.linspace(0.0, 1.0, 5))
    check_target(RectifiedFlow(domain=(0.0, 0.999)), noise, jnp.array([0.999, 0.5]))
    check_target(EDM(), functools.partial(edm, data_deviation=0.6), jnp.array([80.0, 0.002]))
    with pytest.raises(ValueError, match="the target score is"):
        check_target(EDM(), functools.partial(score), jnp.array([80.0, 0.0]))


@pytest.mark.parametrize("target", [clean, noise, velocity])
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
    # The answer agrees with x_t, unscaled, and with the network's output.
    restored = process.corrupt(prediction.clean, prediction.noise, t)
    np.testing.assert_allclose(restored, x_t, rtol=1e-4)
    output = combine(process, target, prediction.clean, prediction.noise, t)
    np.testing.assert_allclose(output, jnp.ones_like(x_t), rtol=1e-4)


def test_predict_splits_a_learned_variance_off():
    network = lambda x, t: jnp.concatenate(
        [2 * x, jnp.stack([-jnp.ones(3), jnp.ones(3)], -1) * jnp.ones_like(x)], -1
    )
    x_t, t = jnp.ones((4, 3, 2)), jnp.full(4, 0.5)
    prediction = predict(network, RectifiedFlow(), clean, learned_variance=True)(x_t, t)
    np.testing.assert_array_equal(prediction.clean, 2)
    np.testing.assert_array_equal(prediction.fraction, np.broadcast_to([0, 1], x_t.shape))
    y, variance = split_variance(jnp.zeros((1, 8, 8, 6)))
    assert y.shape == (1, 8, 8, 3)
    np.testing.assert_array_equal(variance, 0.5)


def test_predictions_pass_through_transformations():
    prediction = Prediction(jnp.ones((2, 3)), jnp.zeros((2, 3)))
    doubled = jax.jit(lambda p: jax.tree.map(lambda a: 2 * a, p))(prediction)
    assert isinstance(doubled, Prediction) and doubled.fraction is None
    np.testing.assert_array_equal(doubled.clean, 2)


def test_an_output_that_would_broadcast_is_no_prediction(unchecked_annotations):
    network = lambda x, t: x[:, :1]
    with pytest.raises(ValueError, match=r"returns shape \(4, 1\); .* that of x, \(4, 2\)"):
        predict(network, RectifiedFlow(), velocity)(jnp.ones((4, 2)), jnp.full(4, 0.5))


def test_swapped_arguments_are_named_before_the_network_is_called(unchecked_annotations):
    network, process = (lambda x, t: x), RectifiedFlow()
    with pytest.raises(ValueError, match="process is <function velocity .* has no alpha; expected"):
        predict(network, velocity, process)
    with pytest.raises(ValueError, match="target is 'velocity'; expected a function"):
        predict(network, process, "velocity")


def test_a_process_without_sigma_says_so():
    class Bare(Process):
        pass

    for name in ("alpha", "sigma"):
        with pytest.raises(NotImplementedError, match=f"Bare defines no {name}"):
            getattr(Bare(), name)(jnp.array(0.5))
