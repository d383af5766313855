"""Trees of arrays: each leaf has its process, target, times and scale, with one network call."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import BY_COLUMNS, SAMPLERS, leaf_by_leaf, quick_jit

from genjax.diffusion import (
    EDM,
    Prediction,
    RectifiedFlow,
    TrigFlow,
    VariancePreservingCosine,
    adaptive,
    adaptive_projected,
    autoguide,
    blend,
    check_target,
    classifier_free,
    classifier_guide,
    clean,
    compose,
    continuous_bound,
    corrupt,
    ddim,
    discrete_bound,
    dynamic_threshold,
    edm,
    extrapolate,
    guide,
    hybrid_loss,
    image_to_image,
    inpaint,
    interval,
    invert,
    karras_grid,
    leaf_keys,
    leafwise,
    log_likelihood,
    log_normal_sigma,
    noise,
    plus_plus,
    posterior_guide,
    predict,
    prior,
    recover,
    repaint,
    rescaled,
    sample_keys,
    samplers,
    simple_loss,
    slerp,
    static_threshold,
    sums_by_time,
    tangential,
    target_rule,
    to_domain,
    total_loss,
    uniform,
    uniform_grid,
    velocity,
    weightings,
    with_clean,
    zero_init,
    zero_star,
)
from genjax.diffusion.optimal import gaussian_least_loss
from genjax.diffusion.times import independent, stratified

FLOW, COSINE = RectifiedFlow(), VariancePreservingCosine()
PROCESSES = {"sound": EDM(), "video": FLOW}
MEANS, DEVIATIONS = {"sound": -0.2, "video": 0.4}, {"sound": 0.5, "video": 0.8}
SHAPES = {"sound": (5,), "video": (3, 2)}
BATCH = 4


def gaussian(process, mean, deviation):
    """Make the exact denoiser for data N(mean, deviation²)."""

    def denoise(x_t, t):
        t = t.reshape(t.shape + (1,) * (x_t.ndim - t.ndim))
        alpha, sigma = process.alpha(t), process.sigma(t)
        variance = alpha**2 * deviation**2 + sigma**2
        residual = x_t - alpha * mean
        return Prediction(
            mean + alpha * deviation**2 / variance * residual, sigma / variance * residual
        )

    return denoise


DENOISERS = {name: gaussian(PROCESSES[name], MEANS[name], DEVIATIONS[name]) for name in PROCESSES}


@pytest.fixture
def keys():
    return sample_keys(jax.random.key(7), jnp.arange(BATCH))


@pytest.fixture
def x():
    key = jax.random.key(3)
    return {name: jax.random.normal(key, (BATCH, *shape)) for name, shape in SHAPES.items()}


@pytest.fixture
def t():
    return {
        "sound": jnp.asarray([0.01, 0.5, 3.0, 70.0]),
        "video": jnp.asarray([0.1, 0.2, 0.6, 1.0]),
    }


def assert_trees_close(found, expected, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), found, expected)


def assert_trees_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


# The helpers.


def test_leafwise():
    """Prefixes serve all leaves below them. None and functions are values.

    Results of several parts are transposed.
    """
    scale = leafwise(lambda x, factor, bias, power: (factor * x + (bias or 0), power(x)))
    tree = {"a": {"b": 2.0, "c": 3.0}, "d": 5.0}
    found = scale(tree, {"a": 10, "d": {"a": 1}["a"]}, power=lambda x: x**2, bias=None)
    assert found == (
        {"a": {"b": 20.0, "c": 30.0}, "d": 5.0},
        {"a": {"b": 4.0, "c": 9.0}, "d": 25.0},
    )
    assert scale(2.0, 3, 1, abs) == (7.0, 2.0)
    assert leafwise(lambda bias, x: x + (bias or 0))(None, 2.0) == 2.0
    with pytest.raises(ValueError, match="different numbers of pytree children"):
        scale(tree, {"a": 1}, 0, abs)


def test_leaf_keys():
    """A single leaf has the keys themselves.

    Several leaves have different keys, which depend only on their sample.
    """
    keys = sample_keys(jax.random.key(0), jnp.arange(3))
    assert leaf_keys(keys, [1])[0] is keys
    split = leaf_keys(keys, SHAPES | {"sound": 1, "video": 2})
    bits = np.concatenate([jax.random.key_data(leaf) for leaf in split.values()])
    assert split["video"].shape == (3,) and len(np.unique(bits, axis=0)) == 6
    for i in range(3):
        one = leaf_keys(keys[i], split)
        assert_trees_equal(
            *(
                jax.tree.map(jax.random.key_data, a)
                for a in (one, {name: leaf[i] for name, leaf in split.items()})
            )
        )


# One leaf is one array and runs the same program. One array does not pay for trees and frames.


def program(function, *arguments):
    """Return the text of the program, with flattened arguments and results."""
    leaves, structure = jax.tree.flatten(arguments)
    flat = lambda *leaves: jax.tree.leaves(function(*structure.unflatten(leaves)))
    return str(jax.make_jaxpr(flat)(*leaves))


def network(x_t, t, *conditioning):
    """Make a network that takes one array, or the tree of that array."""
    answer = lambda x_t, t: (
        jnp.tanh(x_t) * jnp.cos(t)[:, None, None] + sum(a[:, None, None] for a in conditioning)
    )
    return jax.tree.map(answer, x_t, t)


def both_programs(function):
    """Return the programs of `function(wrap, x)` for arrays and for trees.

    wrap leaves what belongs to a leaf as it is, or makes a tree of it.
    """
    x = jnp.ones((BATCH, 3, 2))
    return [
        program(functools.partial(function, wrap), wrap(x))
        for wrap in (lambda a: a, lambda a: {"only": a})
    ]


@pytest.mark.parametrize("name", BY_COLUMNS)
def test_a_sampler_of_one_leaf_is_the_program_of_the_array(name, keys):
    def sample(wrap, noise):
        process, times = wrap(COSINE), wrap(uniform_grid(COSINE, 3))
        return SAMPLERS[name](
            predict(network, process, wrap(noise_target)), process, noise, times, keys=keys
        )

    noise_target = velocity
    of_array, of_tree = both_programs(sample)
    assert of_array == of_tree
    assert "argsort" not in of_array  # nothing waits


@pytest.mark.parametrize("loss", [simple_loss, hybrid_loss])
def test_a_loss_of_one_leaf_is_the_program_of_the_array(loss):
    def evaluate(wrap, x):
        twice = lambda x_t, t: jax.tree.map(lambda a: jnp.concatenate([a, a], -1), network(x_t, t))
        options = dict(process=wrap(COSINE), target=wrap(velocity), times=wrap(uniform))
        options |= dict(variates=wrap(stratified), weighting=wrap(weightings.min_snr))
        losses, t = loss(jax.random.key(0), twice if loss is hybrid_loss else network, x, **options)
        return losses, sums_by_time(wrap(COSINE), losses, t, 10)

    of_array, of_tree = both_programs(evaluate)
    assert of_array == of_tree


RULES = {
    "extrapolate": extrapolate,
    "plus_plus": plus_plus,
    "zero_star": target_rule(COSINE, velocity, zero_star),
    "rescaled": target_rule(COSINE, velocity, functools.partial(rescaled, phi=0.7)),
    "adaptive_projected": target_rule(
        COSINE, clean, functools.partial(adaptive_projected, norm_threshold=2.0), momentum=-0.5
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_guidance_of_one_leaf_is_the_program_of_the_array(rule):
    labels = jnp.arange(4.0)

    def sample(wrap, noise):
        denoiser = predict(network, COSINE, velocity)
        guided = guide(denoiser, labels, jnp.zeros(1), wrap(interval(3.0, 0.2, 0.8)), RULES[rule])
        guided = zero_init(with_clean(guided, COSINE, dynamic_threshold), COSINE, 0.9)
        guided = inpaint(guided, COSINE, wrap(jnp.eye(3, 2) > 0), noise)
        memory = jax.tree.map(jnp.zeros_like, noise) if rule == "adaptive_projected" else None
        return ddim(guided, COSINE, noise, uniform_grid(COSINE, 3), memory=memory)

    of_array, of_tree = both_programs(sample)
    assert of_array == of_tree


def test_a_step_of_one_array_costs_what_its_equation_says():
    """x_s = alpha_s·x̂ + sigma_s·ẑ is two products and a sum.

    Nothing is compared, sorted or selected.
    """
    denoiser = lambda x_t, t: Prediction(jnp.tanh(x_t), jnp.sin(x_t))
    jaxpr = jax.make_jaxpr(lambda times: ddim(denoiser, FLOW, jnp.ones((2, 3)), times))(
        jnp.asarray([1.0, 0.5, 0.0])
    )
    [scan] = [equation for equation in jaxpr.eqns if equation.primitive.name == "scan"]
    names = [equation.primitive.name for equation in scan.params["jaxpr"].eqns]
    operations = [
        name
        for name in names
        if name in ("mul", "add", "tanh", "sin", "select_n", "lt", "jit", "sort")
    ]
    assert sorted(operations) == ["add", "mul", "mul", "sin", "tanh"]


# The algebra.


def test_the_algebra_is_that_of_each_leaf(x, t, keys):
    """x_t and y are computed by hand, and x̂ and ẑ are recovered from them."""
    z = prior(keys, {"sound": COSINE, "video": FLOW}, x)  # sigma = 1 at their ends
    for name, shape in SHAPES.items():
        draw = lambda key, shape=shape: jax.random.normal(key, shape)
        np.testing.assert_array_equal(z[name], jax.vmap(draw)(leaf_keys(keys, x)[name]))
    x_t = corrupt(PROCESSES, x, z, t)
    s, v = t["sound"][:, None], t["video"][:, None, None]
    assert_trees_close(
        x_t,
        {"sound": x["sound"] + s * z["sound"], "video": (1 - v) * x["video"] + v * z["video"]},
        rtol=1e-6,
    )
    y = {"sound": z["sound"], "video": z["video"] - x["video"]}
    found = recover(PROCESSES, {"sound": noise, "video": velocity}, x_t, y, t)
    assert_trees_close(found.clean, x, atol=2e-5)
    assert_trees_close(found.noise, z, atol=1e-5)
    assert_trees_close(
        found.velocity(PROCESSES, t), {"sound": z["sound"], "video": y["video"]}, atol=1e-5
    )


def test_the_network_is_given_trees_and_answers_with_one(x, t):
    """Each process sets scale and network time, in one call, with a learned variance too."""
    calls = []

    def apply(x_t, t, label):
        calls.append((x_t, t, label))
        return jax.tree.map(lambda a: jnp.concatenate([a, 0 * a], -1), x_t)

    denoiser = predict(apply, PROCESSES, {"sound": edm, "video": velocity}, learned_variance=True)
    prediction = denoiser(x, t, "label")
    [(inputs, times, label)] = calls
    s = t["sound"][:, None]
    expected = {"sound": x["sound"] / np.sqrt(s**2 + 0.25), "video": x["video"]}
    assert_trees_close(inputs, expected, rtol=1e-6)
    assert_trees_close(times, {"sound": np.log(t["sound"]) / 4, "video": t["video"]}, rtol=1e-6)
    assert label == "label"
    assert_trees_equal(prediction.fraction, jax.tree.map(lambda a: jnp.full_like(a, 0.5), x))
    v = t["video"][:, None, None]
    # y = x_t.
    np.testing.assert_allclose(prediction.clean["video"], x["video"] * (1 - v), atol=1e-6)


def test_targets_are_checked_leaf_by_leaf():
    with pytest.raises(ValueError, match="the target noise is singular at t = 1 of RectifiedFlow"):
        check_target(
            PROCESSES, noise, {"sound": jnp.asarray([80.0, 1.0]), "video": jnp.asarray([1.0, 0.5])}
        )
    check_target(
        PROCESSES, velocity, {"sound": jnp.asarray([80.0, 1.0]), "video": jnp.asarray([1.0, 0.5])}
    )


# Losses.


def velocities(x_t, t):
    """Make the optimal velocities, whose losses are known. The network time of EDM is log(t)/4."""
    t = {"sound": jnp.exp(4 * t["sound"]), "video": t["video"]}
    scale = jnp.sqrt(t["sound"] ** 2 + 0.25)[:, None]
    x_t = {"sound": scale * x_t["sound"], "video": x_t["video"]}
    return leaf_by_leaf(DENOISERS)(x_t, t).velocity(PROCESSES, t)


def data(key, batch, dimensions):
    draws = {
        name: jax.random.normal(k, (batch, dimensions))
        for name, k in leaf_keys(key, PROCESSES).items()
    }
    return {name: MEANS[name] + DEVIATIONS[name] * draws[name] for name in draws}


def test_losses_of_the_best_network_are_those_of_each_leaf():
    """Each leaf has E Var[y | x_t] in closed form, with its own process, law and weighting."""
    laws = {"sound": log_normal_sigma, "video": uniform}
    weighting = {"sound": lambda process, target, t: 3 / t**2, "video": weightings.uniform}
    options = dict(process=PROCESSES, target=velocity, times=laws, weighting=weighting)
    x = data(jax.random.key(1), 2000, 32)
    losses, t = quick_jit(lambda key: simple_loss(key, velocities, x, **options))(jax.random.key(0))
    weights = {"sound": 3 / t["sound"] ** 2, "video": 1.0}
    for name, process in PROCESSES.items():
        best = weights[name] * gaussian_least_loss(process, velocity, t[name], DEVIATIONS[name])
        np.testing.assert_allclose(np.mean(losses[name] / best), 1, atol=4 * np.sqrt(2 / 32 / 2000))
    total = total_loss(losses, {"sound": 0.5, "video": 2.0})
    np.testing.assert_allclose(total, 0.5 * losses["sound"] + 2 * losses["video"], rtol=1e-6)
    sums, counts = sums_by_time(PROCESSES, losses, t, 4)
    assert_trees_close(jax.tree.map(jnp.sum, sums), jax.tree.map(jnp.sum, losses), rtol=1e-5)
    np.testing.assert_array_equal(counts["video"], np.histogram(t["video"], 4, (0, 1))[0])


def test_leaves_share_their_variates_or_draw_their_own():
    options = dict(process=PROCESSES, target=velocity, times=uniform)
    x = data(jax.random.key(1), 1000, 2)
    times = lambda **more: quick_jit(
        lambda key: simple_loss(key, velocities, x, **options, **more)[1]
    )(jax.random.key(0))
    shared = times()
    np.testing.assert_allclose(shared["sound"], to_domain(EDM(), shared["video"]), rtol=1e-6)
    own = times(variates={"sound": independent, "video": stratified})
    assert abs(np.corrcoef(own["sound"], own["video"])[0, 1]) < 4 / np.sqrt(1000)
    np.testing.assert_array_equal(np.histogram(own["video"], 1000, (0, 1))[0], 1)


def test_leaves_whose_times_have_other_shapes_cannot_share_their_variates():
    """Frames of video have their own times and sound has one time, so each draws its own."""
    x = {"sound": jnp.ones((8, 5)), "video": jnp.ones((8, 3, 2))}
    options = dict(process=FLOW, target=velocity, times=uniform, time_axes={"sound": 1, "video": 2})
    answer = lambda x_t, t: x_t
    with pytest.raises(
        ValueError, match=r"times of one shape, got \[\(8,\), \(8, 3\)\]; give `variates` as a tree"
    ):
        simple_loss(jax.random.key(0), answer, x, **options)
    variates = {"sound": stratified, "video": independent}
    losses, t = simple_loss(jax.random.key(0), answer, x, variates=variates, **options)
    shapes = {"sound": (8,), "video": (8, 3)}
    assert shapes == jax.tree.map(jnp.shape, losses) == jax.tree.map(jnp.shape, t)
    expected = losses["sound"] + losses["video"].mean(1)
    np.testing.assert_allclose(total_loss(losses), expected, rtol=1e-6)


def test_noises_of_leaves_are_independent():
    """The leaves have equal shapes. Without data, a network that answers zero errs by z."""
    seen = []

    def apply(x_t, t):
        seen.append(jax.tree.map(lambda x, t: x / t[:, None], x_t, t))
        return jax.tree.map(jnp.zeros_like, x_t)

    x = {"a": jnp.zeros((500, 4)), "b": jnp.zeros((500, 4))}
    simple_loss(jax.random.key(0), apply, x, process=FLOW, target=velocity, times=uniform)
    a, b = seen[0]["a"].ravel(), seen[0]["b"].ravel()
    np.testing.assert_allclose(np.cov(a, b), np.eye(2), atol=4 * np.sqrt(2 / 2000))


def test_gradients_reach_every_leaf():
    x = data(jax.random.key(1), 16, 4)

    @quick_jit
    @jax.value_and_grad
    def loss_and_slopes(scales):
        apply = lambda x_t, t: jax.tree.map(jnp.multiply, scales, x_t)
        losses, _ = simple_loss(
            jax.random.key(0), apply, x, process=FLOW, target=velocity, times=uniform
        )
        return jnp.mean(total_loss(losses))

    scales = {"sound": 0.3, "video": 0.1}
    slopes = loss_and_slopes(scales)[1]
    for name in slopes:
        steps = [loss_and_slopes(scales | {name: scales[name] + d})[0] for d in (0.01, -0.01)]
        np.testing.assert_allclose(slopes[name], (steps[0] - steps[1]) / 0.02, rtol=1e-3)


# Samplers.


def grids(num_steps):
    """Return EDM's own grid for sound, and equal steps for video, with equally many steps."""
    return {"sound": karras_grid(EDM(), num_steps), "video": uniform_grid(FLOW, num_steps)}


@pytest.mark.parametrize("name", BY_COLUMNS)
def test_leaves_step_together_as_each_would_alone(name, keys):
    """Each leaf has its process, its grid and the same noise, and the network is called once."""
    sampler, calls = SAMPLERS[name], []
    like = {
        name: jax.ShapeDtypeStruct((BATCH, *shape), jnp.float32) for name, shape in SHAPES.items()
    }
    start = prior(keys, PROCESSES, like)
    own_keys, times = leaf_keys(keys, start), grids(3)

    def denoiser(x_t, t):
        calls.append(t)
        return leaf_by_leaf(DENOISERS)(x_t, t)

    @quick_jit
    def sample(start, keys, own_keys):
        together = sampler(denoiser, PROCESSES, start, times, keys=keys, trajectory=True)
        alone = {
            leaf: sampler(
                DENOISERS[leaf],
                PROCESSES[leaf],
                start[leaf],
                times[leaf],
                keys=own_keys[leaf],
                trajectory=True,
            )
            for leaf in start
        }
        return together, alone

    together, alone = sample(start, keys, own_keys)
    assert len(calls) == 1
    assert_trees_close(together, alone, rtol=2e-5, atol=2e-5)


def test_leaves_are_samples_of_the_product_law():
    """Means and deviations are in closed form, and there is no correlation."""
    count = 4000
    keys = sample_keys(jax.random.key(0), jnp.arange(count))
    like = {name: jax.ShapeDtypeStruct((count,), jnp.float32) for name in PROCESSES}
    start = prior(keys, PROCESSES, like)
    sample = lambda start: samplers.unipc(leaf_by_leaf(DENOISERS), PROCESSES, start, grids(30))
    samples = quick_jit(sample)(start)
    for name, values in samples.items():
        np.testing.assert_allclose(
            np.mean(values), MEANS[name], atol=5 * DEVIATIONS[name] / np.sqrt(count)
        )
        np.testing.assert_allclose(np.std(values), DEVIATIONS[name], rtol=0.06)
    assert abs(np.corrcoef(samples["sound"], samples["video"])[0, 1]) < 4 / np.sqrt(count)


@pytest.mark.parametrize("name", ["ddpm", "edm_heun", "deis", "predictor_corrector"])
def test_a_given_leaf_waits(name, keys, x):
    """Sound stays clean, bit for bit, for any prediction of it, and video is sampled for it."""
    start = {"sound": x["sound"], "video": FLOW.prior(keys, SHAPES["video"])}
    times = {"sound": jnp.zeros(5), "video": uniform_grid(FLOW, 4)}

    def denoiser(x_t, t):
        mean = x_t["sound"][:, :1, None]  # of the video
        residual = x_t["video"] - (1 - t["video"][:, None, None]) * mean
        video = mean + 0 * residual, residual / t["video"][:, None, None]
        bad = jnp.full_like(x_t["sound"], jnp.nan)
        return Prediction(*({"sound": bad, "video": half} for half in video))

    found = quick_jit(lambda start: SAMPLERS[name](denoiser, PROCESSES, start, times, keys=keys))(
        start
    )
    np.testing.assert_array_equal(found["sound"], x["sound"])
    np.testing.assert_allclose(found["video"] - x["sound"][:, :1, None], 0, atol=1e-5)


def test_start_from_leaves_that_are_given(keys, x):
    """Data are noised to the first time of each grid with each leaf's keys, and sound is given."""
    times = {"sound": jnp.zeros(3), "video": jnp.asarray([0.75, 0.3, 0.0])}
    noised = functools.partial(image_to_image, ddim, leaf_by_leaf(DENOISERS), PROCESSES)
    sample = lambda x, keys: noised(x, times, keys, strength=1.0, trajectory=True)
    states = quick_jit(sample)(x, keys)
    np.testing.assert_array_equal(states["sound"], jnp.stack([x["sound"]] * 3))
    z = jax.vmap(lambda key: jax.random.normal(key, SHAPES["video"]))(leaf_keys(keys, x)["video"])
    np.testing.assert_allclose(
        states["video"][0], 0.25 * x["video"] + 0.75 * z, rtol=1e-5, atol=1e-6
    )


def test_one_process_and_one_grid_serve_all_leaves(keys, x):
    """A table made by hand serves all leaves too."""
    denoiser = lambda x_t, t: Prediction(jax.tree.map(jnp.tanh, x_t), x_t)

    @quick_jit
    def samples(x, times):
        of_each = {"sound": FLOW, "video": FLOW}, x, {"sound": times, "video": times}
        by_hand = samplers.tables.run(denoiser, x, ddim.table(FLOW, times))
        return ddim(denoiser, FLOW, x, times), ddim(denoiser, *of_each), by_hand

    found, of_each, from_table = samples(x, uniform_grid(FLOW, 3))
    assert_trees_equal(found, of_each)
    assert_trees_close(from_table, found, rtol=1e-6)


def test_grids_of_leaves_have_as_many_steps(x, keys):
    """All of it is said before anything is computed."""

    def sample(sampler, grids, **options):
        jax.eval_shape(
            lambda x: sampler(leaf_by_leaf(DENOISERS), PROCESSES, x, grids(), **options), x
        )

    uneven = lambda: {"sound": karras_grid(EDM(), 4), "video": uniform_grid(FLOW, 3)}
    with pytest.raises(ValueError, match=r"grids have one length; got \[5, 4\]"):
        sample(ddim, uneven)
    with pytest.raises(ValueError, match="give it keys"):
        sample(samplers.ddpm, lambda: grids(3))
    with pytest.raises(ValueError, match="repaint goes back and forth"):
        sample(repaint, lambda: grids(6), keys=keys, jump_length=2)


def test_adaptive_steps_keep_the_tolerance_of_every_leaf(x):
    """The flow keeps (x_t − alpha·m)/deviation, in closed form for both leaves."""
    best = lambda process: leaf_by_leaf(
        {name: gaussian(process, MEANS[name], DEVIATIONS[name]) for name in x}
    )

    @quick_jit
    def solve(x):
        options = dict(rtol=1e-6, atol=1e-6)
        states = adaptive(
            best(COSINE), COSINE, x, uniform_grid(COSINE, 2), trajectory=True, **options
        )
        return states, adaptive(best(EDM()), EDM(), x, jnp.asarray([80.0, 0.0]))  # and a step to 0

    states, ends = solve(x)
    expected = {name: MEANS[name] + DEVIATIONS[name] * x[name] for name in x}
    assert_trees_close(jax.tree.map(lambda states: states[-1], states), expected, atol=2e-5)
    factors = {
        name: deviation / np.sqrt(80**2 + deviation**2) for name, deviation in DEVIATIONS.items()
    }
    expected = {name: MEANS[name] + factors[name] * (x[name] - MEANS[name]) for name in x}
    assert_trees_close(ends, expected, atol=1e-4)


def test_adaptive_steps_are_of_one_process_and_one_time(x):
    denoiser = leaf_by_leaf(DENOISERS)
    with pytest.raises(ValueError, match="adaptive takes one process and one grid"):
        adaptive(denoiser, PROCESSES, x, uniform_grid(FLOW, 2))


@pytest.mark.parametrize("likelihood", ["log_likelihood", "discrete_bound", "continuous_bound"])
def test_likelihoods_are_of_one_array(likelihood, x):
    """Annotations, which only tests check, would refuse it first."""
    denoiser, key = leaf_by_leaf(DENOISERS), jax.random.key(0)
    calls = {
        "log_likelihood": lambda: inspect.unwrap(log_likelihood)(denoiser, FLOW, x),
        "discrete_bound": lambda: inspect.unwrap(discrete_bound)(
            key, denoiser, FLOW, x, jnp.asarray([1.0, 0.5])
        ),
        "continuous_bound": lambda: inspect.unwrap(continuous_bound)(key, denoiser, FLOW, x),
    }
    with pytest.raises(ValueError, match="likelihoods take one array"):
        calls[likelihood]()


def test_inversion_finds_the_noise_of_every_leaf(x):
    times = {
        name: uniform_grid(process, 40)
        for name, process in {"sound": COSINE, "video": FLOW}.items()
    }
    processes = {"sound": COSINE, "video": FLOW}
    denoiser = leaf_by_leaf(
        {name: gaussian(processes[name], MEANS[name], DEVIATIONS[name]) for name in x}
    )
    walk = lambda x: invert(samplers.heun, denoiser, processes, x, times, trajectory=True)
    states = quick_jit(walk)(x)
    expected = {name: (x[name] - MEANS[name]) / DEVIATIONS[name] for name in x}
    assert_trees_close(jax.tree.map(lambda a: a[-1], states), expected, atol=0.02)
    with pytest.raises(ValueError, match="some processes have their clean end in their domain"):
        invert(samplers.heun, denoiser, PROCESSES, x, times)


# Guidance of a denoiser that treats each leaf separately equals the guidance of each leaf.


def separable(name):
    """Make a nonlinear denoiser that depends on all of its arguments."""

    def denoise(x_t, t, label):
        t, label = (a.reshape(a.shape + (1,) * (x_t.ndim - 1)) for a in (t, label))
        clean = jnp.sin(x_t + t * label + len(name))
        return Prediction(clean, jnp.cos(x_t) * label)

    return denoise


def both(x_t, t, label):
    denoisers = {name: lambda x_t, t, name=name: separable(name)(x_t, t, label) for name in SHAPES}
    return leaf_by_leaf(denoisers)(x_t, t)


LABELS, WEAKER = jnp.asarray([1.0, 2.0, 3.0, 0.5]), jnp.asarray([0.4, 0.1, 0.3, 0.2])
PAIR = {"sound": COSINE, "video": FLOW}
QUANTITY = {"sound": clean, "video": velocity}
# Functions of a denoiser with labels, the process, the target and the scale, as trees or for one
# leaf.
GUIDED = {
    "extrapolate": lambda d, p, q, s: guide(d, LABELS, jnp.zeros(1), s),
    "plus_plus": lambda d, p, q, s: guide(d, LABELS, jnp.zeros(1), s, plus_plus),
    "zero_star": lambda d, p, q, s: guide(d, LABELS, jnp.zeros(1), s, target_rule(p, q, zero_star)),
    "rescaled": lambda d, p, q, s: guide(
        d, LABELS, jnp.zeros(1), s, target_rule(p, q, functools.partial(rescaled, phi=0.7))
    ),
    "projected": lambda d, p, q, s: guide(
        d,
        LABELS,
        jnp.zeros(1),
        s,
        target_rule(p, q, functools.partial(adaptive_projected, eta=0.3, norm_threshold=1.0)),
    ),
    "autoguide": lambda d, p, q, s: autoguide(
        lambda x, t: d(x, t, LABELS), lambda x, t: d(x, t, WEAKER), s
    ),
    "compose": lambda d, p, q, s: compose(d, [LABELS, WEAKER], jnp.zeros(1), [s, 2.0]),
    "blend": lambda d, p, q, s: blend(
        [
            lambda x, t: d(x, t, LABELS),
            lambda x, t: d(x, t, WEAKER),
            lambda x, t: d(x, t, 0 * LABELS),
        ],
        [s, 2.0],
    ),
    "tangential": lambda d, p, q, s: guide(
        d, LABELS, jnp.zeros(1), s, target_rule(p, q, tangential)
    ),
    "posterior": lambda d, p, q, s: posterior_guide(
        lambda x, t: d(x, t, LABELS),
        p,
        lambda x, t: sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(x)),
        s,
    ),
    "static": lambda d, p, q, s: with_clean(lambda x, t: d(x, t, LABELS), p, static_threshold),
    "dynamic": lambda d, p, q, s: with_clean(
        lambda x, t: d(x, t, LABELS), p, lambda x: dynamic_threshold(x, bound=0.5)
    ),
    "zero_init": lambda d, p, q, s: zero_init(lambda x, t: d(x, t, LABELS), p, 0.5),
    "classifier": lambda d, p, q, s: classifier_guide(
        lambda x, t: d(x, t, LABELS),
        p,
        lambda x, t: sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(x)),
        s,
    ),
}


@pytest.mark.parametrize("name", GUIDED)
def test_guidance_is_that_of_each_leaf(name, x):
    scales = {"sound": 3.0, "video": interval(2.0, 0.1, 0.8)}
    t = {"sound": jnp.asarray([0.1, 0.4, 0.6, 0.9]), "video": jnp.asarray([0.2, 0.7, 0.3, 0.95])}

    @quick_jit
    def together_and_alone(x, t):
        arguments = lambda leaf: (separable(leaf), PAIR[leaf], QUANTITY[leaf], scales[leaf])
        alone = {leaf: GUIDED[name](*arguments(leaf))(x[leaf], t[leaf])[:2] for leaf in SHAPES}
        return GUIDED[name](both, PAIR, QUANTITY, scales)(x, t)[:2], alone

    found, alone = together_and_alone(x, t)
    for leaf in SHAPES:
        for half, expected in zip(found, alone[leaf], strict=True):
            np.testing.assert_allclose(half[leaf], expected, rtol=1e-5, atol=1e-6)


def test_the_network_of_guidance_is_called_once_with_every_leaf_stacked(x, t):
    calls = []

    def denoiser(x_t, t, label):
        calls.append((x_t, t, label))
        return both(x_t, t, label)

    guide(denoiser, LABELS, jnp.zeros(1), 2.0)(x, t)
    [(x_t, times, labels)] = calls
    assert_trees_equal(x_t, jax.tree.map(lambda a: jnp.repeat(a, 2, axis=0), x))
    assert_trees_equal(times, jax.tree.map(lambda a: jnp.repeat(a, 2), t))
    np.testing.assert_array_equal(labels, [1.0, 0, 2.0, 0, 3.0, 0, 0.5, 0])
    with pytest.raises(ValueError, match="got 3 for 4 samples"):
        guide(denoiser, LABELS[:3], jnp.zeros(1), 2.0)(x, t)


def test_momentum_is_kept_of_every_leaf(x):
    """The memory goes from row to row, for each leaf as if it were alone."""
    rule = target_rule(PAIR, QUANTITY, classifier_free, momentum=-0.5)
    times = uniform_grid(FLOW, 4)
    sample = lambda denoiser, rule, process, x: quick_jit(
        lambda x: ddim(
            guide(denoiser, LABELS, jnp.zeros(1), 3.0, rule),
            process,
            x,
            times,
            memory=jax.tree.map(jnp.zeros_like, x),
        )
    )(x)
    found = sample(both, rule, PAIR, x)
    for leaf in SHAPES:
        rule = target_rule(PAIR[leaf], QUANTITY[leaf], classifier_free, momentum=-0.5)
        alone = sample(separable(leaf), rule, PAIR[leaf], x[leaf])
        np.testing.assert_allclose(found[leaf], alone, rtol=1e-5, atol=1e-5)


def test_inpainting_of_some_leaves(x):
    """Sound is known, and so are the first rows of video."""
    known = {"sound": jnp.asarray(True), "video": jnp.asarray([[True], [False], [False]])}
    denoiser = inpaint(
        leaf_by_leaf({leaf: gaussian(PAIR[leaf], 0.3, 0.5) for leaf in x}), PAIR, known, x
    )
    start = jax.tree.map(lambda a: -a, x)
    found = quick_jit(lambda start: ddim(denoiser, PAIR, start, uniform_grid(FLOW, 4)))(start)
    np.testing.assert_allclose(found["sound"], x["sound"], atol=1e-6)
    np.testing.assert_allclose(found["video"][:, 0], x["video"][:, 0], atol=1e-6)
    assert np.abs(found["video"][:, 1:] - x["video"][:, 1:]).max() > 0.1


def test_slerp_of_trees(x):
    other = jax.tree.map(jnp.flip, x)
    found = slerp(x, other, {"sound": 0.25, "video": jnp.asarray([0.0, 0.5, 1.0, 0.3])})
    expected = {"sound": slerp(x["sound"], other["sound"], 0.25)}
    expected["video"] = slerp(x["video"], other["video"], jnp.asarray([0.0, 0.5, 1.0, 0.3]))
    assert_trees_equal(found, expected)
    np.testing.assert_allclose(found["video"][0], x["video"][0], rtol=1e-6)


def test_another_process_of_trigonometric_time(x, keys):
    """Leaves need no common domain: TrigFlow ends at π/2, and rectified flow at 1."""
    processes = {"sound": TrigFlow(), "video": FLOW}
    times = {name: uniform_grid(process, 40) for name, process in processes.items()}
    start = prior(keys, processes, x)
    denoiser = leaf_by_leaf({name: gaussian(processes[name], 0.2, 0.5) for name in x})
    found = quick_jit(lambda start: samplers.heun(denoiser, processes, start, times))(start)
    # The flow keeps the quantile. TrigFlow's noise has the deviation .5.
    assert_trees_close(
        found, {"sound": 0.2 + start["sound"], "video": 0.2 + 0.5 * start["video"]}, atol=5e-3
    )
