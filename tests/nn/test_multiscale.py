import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genjax.nn.multiscale import MultiScaleQuantizer
from genjax.nn.resize import area, bicubic

SIDES, FEATURES = (1, 2, 3, 5), 4
QUANTIZER = MultiScaleQuantizer(32, FEATURES, SIDES)
RANDOM = np.random.default_rng(0)
LATENTS = jnp.asarray(RANDOM.standard_normal((3, 5, 5, FEATURES)), jnp.float32)


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(QUANTIZER.init, jax.random.key(0), LATENTS)
    return jax.tree.map(lambda a: 0.7 * RANDOM.standard_normal(a.shape, np.float32), shapes)


@pytest.fixture(scope="module")
def quantize():
    return jax.jit(QUANTIZER.apply)


def test_area_is_the_mean_over_the_inputs_that_an_output_touches():
    """As PyTorch's adaptive pooling: input 1 of 3 belongs to both of 2 outputs."""
    np.testing.assert_allclose(area(3, 2), [[0.5, 0.5, 0], [0, 0.5, 0.5]])
    np.testing.assert_allclose(area(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    np.testing.assert_allclose(area(5, 1), np.full((1, 5), 0.2))
    np.testing.assert_array_equal(area(4, 4), np.eye(4))


def reference(params, latents):
    """The algorithm of the paper in float64, one place after another."""
    codes = np.float64(params["codes"])
    total, indices, rests, errors = np.zeros(latents.shape), [], [], []
    for scale, side in enumerate(SIDES):
        shrink, enlarge = area(5, side), bicubic(side, 5)
        rest = np.einsum("yh,xw,bhwc->byxc", shrink, shrink, latents - total)
        squares = np.square(rest[..., None, :] - codes).sum(-1)
        chosen = squares.argmin(-1)
        maps = np.einsum("yh,xw,bhwc->byxc", enlarge, enlarge, codes[chosen])
        # Four convolutions stand at 1/12, 13/36, 23/36 and 11/12, scales at 0, 1/3, 2/3 and 1.
        layer = params[f"convolutions_{scale}"]
        padded, convolved = np.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0))), 0
        for i, j in np.ndindex(3, 3):
            convolved += padded[:, i : i + 5, j : j + 5] @ np.float64(layer["kernel"][i, j])
        total += 0.5 * maps + 0.5 * (convolved + layer["bias"])
        indices.append(chosen.reshape(len(latents), -1))
        rests.append(rest.reshape(len(latents), -1, FEATURES))
        errors.append(np.square(latents - total).mean())
    indices, rests = (np.concatenate(parts, axis=1) for parts in (indices, rests))
    return total, indices, rests, np.mean(errors)


def test_codes_are_those_of_the_algorithm_in_float64(variables, quantize):
    quantized = quantize(variables, LATENTS)
    total, indices, _, error = reference(variables["params"], np.float64(LATENTS))
    np.testing.assert_array_equal(quantized.indices, indices)
    np.testing.assert_allclose(quantized.latents, total, rtol=0, atol=1e-5 * np.abs(total).max())
    for name in ("commitment", "codebook"):
        np.testing.assert_allclose(quantized.losses[name], error, rtol=1e-5)
    assert len(np.unique(indices)) > 10


def test_moving_codes_are_means_of_what_coarser_maps_leave_over_at_all_scales(variables):
    """Without inertia a code is the mean of its latents; a code that was not chosen restarts."""
    params = dict(variables["params"])
    codes = params.pop("codes")
    _, indices, rests, _ = reference(variables["params"], np.float64(LATENTS))
    for threshold in (0.0, 1e-3):
        options = dict(ema_decay=0.0, restart_threshold=threshold)
        quantizer = MultiScaleQuantizer(32, FEATURES, SIDES, **options)
        kept = {"codes": codes, "shares": np.ones(32, np.float32)}
        apply = jax.jit(functools.partial(quantizer.apply, mutable=["codebook"]), static_argnums=2)
        rngs = {"restart": jax.random.key(0)}
        quantized, after = apply({"params": params, "codebook": kept}, LATENTS, True, rngs=rngs)
        np.testing.assert_array_equal(quantized.indices, indices)
        for code, new in enumerate(after["codebook"]["codes"]):
            own = rests[indices == code]
            if len(own):
                np.testing.assert_allclose(new, own.mean(axis=0), atol=1e-5)
            elif threshold:
                assert np.abs(rests.reshape(-1, FEATURES) - new).max(axis=1).min() < 1e-5
            else:
                np.testing.assert_array_equal(new, codes[code])
        assert len(np.unique(indices)) < 32


def test_the_pyramid_of_codes_is_the_residual_sum_exactly(variables, quantize):
    """Map after map, from indices alone, to the last bit."""
    quantized = quantize(variables, LATENTS)
    apply = lambda method: jax.jit(lambda *a: QUANTIZER.apply(variables, *a, method=method))
    np.testing.assert_array_equal(apply("lookup")(quantized.indices), quantized.latents)
    sums = apply("sums")(quantized.indices)
    inputs = np.split(apply("inputs")(quantized.indices), [4, 13], axis=1)
    total, start = jnp.zeros_like(LATENTS), 0
    for scale, side in enumerate(SIDES):
        indices = quantized.indices[:, start : start + side**2]
        extend = jax.jit(
            lambda total, a, s=scale: QUANTIZER.apply(variables, total, a, s, method="extend")
        )
        total, following = extend(total, indices)
        np.testing.assert_array_equal(total, sums[scale])
        if scale + 1 < len(SIDES):
            np.testing.assert_array_equal(following, inputs[scale])
        start += side**2
    assert following is None


def test_scales_share_convolutions_as_in_the_published_tokenizer():
    """Which of four each of ten scales has, by the authors' `PhiPartiallyShared`; 2/9 is a tie."""
    quantizer = MultiScaleQuantizer(8, 2, (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    shares = [quantizer._refinement_of(scale) for scale in range(10)]
    assert shares == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(3, 5 * [0] + 4 * [1] + 5 * [2]), (5, [0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4])],
)
def test_other_numbers_of_convolutions_have_equal_parts_of_the_scales(count, expected):
    """The authors' program places only four wider than that."""
    sides = range(1, len(expected) + 1)
    quantizer = MultiScaleQuantizer(8, 2, sides, num_refinements=count)
    assert [quantizer._refinement_of(scale) for scale in range(len(sides))] == expected


def test_gradients_are_those_of_the_straight_through_estimator(variables):
    weights = RANDOM.standard_normal(LATENTS.shape)
    through = lambda x: jnp.sum(weights * QUANTIZER.apply(variables, x).latents)
    np.testing.assert_allclose(jax.jit(jax.grad(through))(LATENTS), weights, rtol=1e-6)

    def loss(variables, x, name):
        return QUANTIZER.apply(variables, x).losses[name]

    gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    of_codes, of_latents = gradient(variables, LATENTS, "codebook")
    assert np.abs(of_codes["params"]["codes"]).max() > 0 and not np.any(of_latents)
    of_codes, of_latents = gradient(variables, LATENTS, "commitment")
    assert np.abs(of_latents).max() > 0 and not np.any(of_codes["params"]["codes"])


def test_training_the_codebook_lowers_the_error(variables, quantize):
    """On 64 latents of rank two. Before, the codes are random and far from them."""
    factors = RANDOM.standard_normal((64, 25, 2)) @ RANDOM.standard_normal((2, FEATURES))
    x = jnp.asarray(factors.reshape(64, 5, 5, FEATURES) / 2, jnp.float32)
    optimizer = optax.adam(0.02)

    @jax.jit
    def train(variables):
        def step(carry, _):
            variables, state = carry
            loss = lambda v: QUANTIZER.apply(v, x).losses["codebook"]
            updates, state = optimizer.update(jax.grad(loss)(variables), state)
            return (optax.apply_updates(variables, updates), state), None

        return jax.lax.scan(step, (variables, optimizer.init(variables)), length=60)[0][0]

    trained = train(variables)
    error = lambda v: float(jnp.mean(jnp.square(quantize(v, x).latents - x)))
    assert error(trained) < 0.4 * float(jnp.mean(jnp.square(x))) < error(variables)


def test_latents_of_another_side_are_refused(variables):
    with pytest.raises(ValueError, match=r"takes latents \(5, 5, 4\); got \(4, 5, 4\)"):
        QUANTIZER.apply(variables, LATENTS[:, 1:])
