import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from genjax.nn import (
    BinarySphericalQuantizer,
    FactorizedResidualQuantizer,
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    ResidualVectorQuantizer,
    VectorQuantizer,
)
from tests import virtual_devices

CODES, FEATURES = 50, 6


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def nearest(x, codes):
    """In float64: the nearest code's index, and how much nearer it is than the next."""
    distances = np.sum((x[:, None].astype(np.float64) - codes) ** 2, axis=-1)
    first, second = np.partition(distances, 1, axis=1)[:, :2].T
    return distances.argmin(axis=1), second - first


@pytest.mark.parametrize("normalize", [False, True])
def test_nearest_code(normalize):
    x, codes = normal(0, 4000, FEATURES), normal(1, 512, FEATURES)
    quantizer = VectorQuantizer(512, FEATURES, normalize=normalize)
    found = jax.jit(quantizer.apply)({"params": {"codes": codes}}, x.reshape(40, 100, FEATURES))
    assert found.indices.shape == (40, 100) and found.indices.dtype == jnp.int32
    if normalize:
        x, codes = unit(x), unit(codes)
    indices, lead = nearest(x, codes)
    # the products' rounding is of some 1e-7 of the squares, here at most 20 and 30
    doubtful = lead < 1e-7 * (np.sum(x**2, axis=1) + np.sum(codes**2, axis=1).max())
    assert doubtful.mean() < 1e-3
    np.testing.assert_array_equal(found.indices.reshape(-1)[~doubtful], indices[~doubtful])
    np.testing.assert_allclose(
        found.latents.reshape(-1, FEATURES)[~doubtful], codes[indices][~doubtful], rtol=1e-5
    )


def test_normalized_codes_start_at_unit_length():
    """As in LlamaGen's vq_model.py. At ±1/K their gradients would be some K times as large."""
    quantizer = VectorQuantizer(CODES, FEATURES, normalize=True)
    codes = quantizer.init(jax.random.key(0), jnp.zeros((1, FEATURES)))["params"]["codes"]
    np.testing.assert_allclose(np.linalg.norm(codes, axis=-1), 1, rtol=1e-6)  # float32


@pytest.mark.parametrize(
    "quantizer",
    [
        VectorQuantizer(CODES, FEATURES),
        VectorQuantizer(CODES, FEATURES, normalize=True, ema_decay=0.9),
        ResidualVectorQuantizer(3, CODES, FEATURES),
        FiniteScalarQuantizer((8, 5, 2, 7, 3, 4)),
        LookupFreeQuantizer(FEATURES),
        BinarySphericalQuantizer(FEATURES),
    ],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_straight_through(quantizer):
    """Forward exactly the codes that `lookup` gives; backward the gradient of the latents."""
    x, weights = jnp.asarray(normal(0, 2, 9, FEATURES)), normal(1, 2, 9, FEATURES)

    @jax.jit
    def results():
        variables = quantizer.init(jax.random.key(0), x)
        loss = lambda variables, x: (lambda q: (jnp.sum(q.latents * weights), q))(
            quantizer.apply(variables, x)
        )
        gradients, quantized = jax.grad(loss, argnums=(0, 1), has_aux=True)(variables, x)
        return quantized, quantizer.apply(variables, quantized.indices, method="lookup"), gradients

    quantized, codes, (of_variables, of_x) = results()
    np.testing.assert_array_equal(quantized.latents, codes)
    assert quantized.indices.max() < quantizer.num_codes
    assert not any(np.any(a) for a in jax.tree.leaves(of_variables))

    expected = weights
    if getattr(quantizer, "normalize", False) or isinstance(quantizer, BinarySphericalQuantizer):
        radius, u = np.linalg.norm(x, axis=-1, keepdims=True), unit(x)
        expected = (weights - u * np.sum(u * weights, axis=-1, keepdims=True)) / radius
    if isinstance(
        quantizer, FiniteScalarQuantizer
    ):  # of the paper's bound, tanh(z + shift)·(L − 1)/2, over ⌊L/2⌋
        levels = np.array(quantizer.levels)
        reach = 0.999 * (levels - 1) / 2
        shift = np.tan((levels % 2 == 0) / 2 / reach)
        expected = weights * reach / np.cosh(x + shift) ** 2 / (levels // 2)
    np.testing.assert_allclose(
        of_x, expected, rtol=1e-4, atol=1e-5
    )  # float32; near two levels' ends tanh is flat


def test_losses_of_the_codebook():
    """Values in closed form.

    "commitment" moves latents alone and "codebook" codes alone, by the same differences.
    """
    x, codes = normal(0, 300, FEATURES), normal(1, CODES, FEATURES)
    losses = lambda codes, x: (
        VectorQuantizer(CODES, FEATURES).apply({"params": {"codes": codes}}, x).losses
    )
    values, gradients = jax.jit(lambda *a: (losses(*a), jax.jacobian(losses, argnums=(0, 1))(*a)))(
        codes, x
    )
    indices, _ = nearest(x, codes)
    difference = x - codes[indices]
    for value in values.values():
        np.testing.assert_allclose(value, np.mean(difference**2), rtol=1e-5)
    slope = 2 * difference / difference.size
    of_codes = np.zeros_like(codes)
    np.add.at(of_codes, indices, -slope)
    for name, expected in {"commitment": (0 * codes, slope), "codebook": (of_codes, 0 * x)}.items():
        for found, gradient in zip(gradients[name], expected, strict=True):
            np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-8)


def test_entropy_of_a_codebook():
    x, codes, temperature = normal(0, 40, FEATURES), normal(1, CODES, FEATURES), 0.7
    quantizer = VectorQuantizer(CODES, FEATURES, entropy_temperature=temperature)
    found = jax.jit(quantizer.apply)({"params": {"codes": codes}}, x).losses["entropy"]
    law = softmax(
        -np.sum((x[:, None].astype(np.float64) - codes) ** 2, axis=-1) / temperature, axis=1
    )
    np.testing.assert_allclose(
        found, entropy(law, axis=1).mean() - entropy(law.mean(axis=0)), rtol=1e-5
    )


EMA = dict(ema_decay=0.8)


@functools.cache
def ema_step(quantizer):
    def step(variables, x, key):
        return quantizer.apply(
            variables, x, train=True, mutable=["codebook"], rngs={"restart": key}
        )

    return jax.jit(step)


def start(codes):
    return {"codebook": {"codes": codes, "shares": np.ones(len(codes), np.float32)}}


@pytest.mark.parametrize("normalize", [False, True])
def test_moving_averages(normalize):
    """Appendix A.1 in NumPy: N ← γN + (1 − γ)n, m ← γm + (1 − γ)Σz, c = m/N.

    N begins as an equal share of the batch.
    """
    quantizer, batch, decay = (
        VectorQuantizer(CODES, FEATURES, normalize=normalize, **EMA),
        200,
        EMA["ema_decay"],
    )
    codes = normal(0, CODES, FEATURES)
    codes[7] = 100.0 * (-1) ** np.arange(FEATURES)  # never chosen, unless by its direction
    variables = start(codes)
    counts, sums = np.full(CODES, batch / CODES), codes * batch / CODES
    for step in range(6):
        x = normal(10 + step, batch, FEATURES)
        quantized, variables = ema_step(quantizer)(variables, x, jax.random.key(0))
        assert "codebook" not in quantized.losses
        if normalize:
            x, codes = unit(x), unit(codes)
        indices, _ = nearest(x, codes)
        np.testing.assert_array_equal(quantized.indices, indices)
        np.testing.assert_allclose(
            quantized.latents, codes[indices], rtol=1e-4, atol=1e-5
        )  # those before
        counts = decay * counts + (1 - decay) * np.bincount(indices, minlength=CODES)
        sums *= decay
        np.add.at(sums, indices, (1 - decay) * x)
        codes = sums / counts[:, None]
        # float32, six updates
        np.testing.assert_allclose(
            variables["codebook"]["shares"], counts * CODES / batch, rtol=1e-5
        )
        np.testing.assert_allclose(variables["codebook"]["codes"], codes, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variables["codebook"]["shares"].mean(), 1, rtol=1e-5)


def test_moving_averages_do_not_depend_on_the_batch_size():
    x, variables = normal(0, 100, FEATURES), start(normal(1, CODES, FEATURES))
    quantizer = VectorQuantizer(CODES, FEATURES, **EMA)
    _, once = ema_step(quantizer)(variables, x, jax.random.key(0))
    _, thrice = ema_step(quantizer)(variables, np.tile(x, (3, 1)), jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), once, thrice)


def test_a_code_out_of_use_stays_where_it_is():
    """Also when its moving count has underflowed. Back in use, a code is at its latents' mean."""
    codes = np.stack([np.zeros(FEATURES), np.full(FEATURES, 50.0)]).astype(np.float32)
    variables = start(codes)
    variables["codebook"]["shares"] = np.array([2.0, 0.0], np.float32)
    quantizer = VectorQuantizer(2, FEATURES, **EMA)
    _, after = ema_step(quantizer)(variables, normal(0, 20, FEATURES), jax.random.key(0))
    np.testing.assert_array_equal(after["codebook"]["codes"][1], codes[1])
    assert after["codebook"]["shares"][1] == 0 and np.all(np.isfinite(after["codebook"]["codes"]))
    x = 45 + normal(0, 20, FEATURES)
    _, after = ema_step(quantizer)(variables, x, jax.random.key(0))
    np.testing.assert_allclose(after["codebook"]["codes"][1], x.mean(axis=0), rtol=1e-5)


def test_nothing_moves_outside_of_training():
    quantizer, x = (
        VectorQuantizer(CODES, FEATURES, restart_threshold=0.5, **EMA),
        normal(0, 100, FEATURES),
    )
    variables = start(normal(1, CODES, FEATURES))
    _, after = jax.jit(functools.partial(quantizer.apply, mutable=["codebook"]))(variables, x)
    jax.tree.map(np.testing.assert_array_equal, after, variables)
    jax.jit(functools.partial(quantizer.apply, train=True))(
        variables, x
    )  # frozen: needs no key and no mutability
    initial = jax.jit(functools.partial(quantizer.init, train=True))(jax.random.key(0), x)
    np.testing.assert_array_equal(initial["codebook"]["shares"], 1)
    largest = np.abs(initial["codebook"]["codes"]).max()  # U(−1/K, 1/K) of VQGAN's code
    assert 0.95 / CODES < largest <= 1 / CODES


def test_dead_codes_restart_at_latents():
    quantizer = VectorQuantizer(CODES, FEATURES, restart_threshold=0.5, **EMA)
    x, codes = normal(0, 200, FEATURES), normal(1, CODES, FEATURES)
    codes[::2] += 1000  # half of them are out of reach
    variables = start(codes)
    _, without = ema_step(VectorQuantizer(CODES, FEATURES, **EMA))(variables, x, jax.random.key(0))
    variables["codebook"]["shares"] = np.where(np.arange(CODES) % 4 == 0, 0.6, 1.0).astype(
        np.float32
    )
    _, after = ema_step(quantizer)(variables, x, jax.random.key(0))
    after, without = after["codebook"], without["codebook"]
    restarted = x[:, None] == after["codes"][::4]  # .8·.6 is under .5, .8·1 is not
    assert np.all(restarted.all(axis=-1).any(axis=0))
    assert len(np.unique(after["codes"][::4], axis=0)) > 10  # of 13, each its own
    np.testing.assert_array_equal(after["shares"][::4], 1)
    np.testing.assert_array_equal(after["codes"][2::4], codes[2::4])
    chosen = without["shares"][1::2] > 0.85  # those chosen at least once, which is .08 of .8
    np.testing.assert_allclose(
        after["codes"][1::2][chosen], without["codes"][1::2][chosen], rtol=1e-6
    )


@pytest.mark.parametrize(("threshold", "least", "most"), [(0.1, 0.9, 1.0), (0.0, 0.0, 0.5)])
def test_restarts_keep_a_codebook_in_use(threshold, least, most):
    """64 clusters and 64 codes that begin at one place: without restarts most are never chosen."""
    quantizer = VectorQuantizer(64, FEATURES, restart_threshold=threshold, **EMA)
    centres = 5 * normal(0, 64, FEATURES)
    variables = jax.jit(quantizer.init)(jax.random.key(0), centres)
    step = ema_step(quantizer)
    random = np.random.default_rng(1)
    draw = lambda: (
        centres[random.integers(64, size=512)] + 0.1 * random.standard_normal((512, FEATURES))
    )
    for i in range(120):
        quantized, variables = step(variables, draw().astype(np.float32), jax.random.key(i))
    used = len(np.unique(quantized.indices)) / 64
    assert least <= used <= most
    if threshold:
        assert (
            np.mean(quantized.losses["commitment"]) < 1
        )  # 25 for the mean of all, .01 for one code each


def test_residual_quantizer():
    """Level by level in NumPy.

    The losses are sums over levels. The first indices alone give coarser latents.
    """
    levels, x = 3, normal(0, 80, FEATURES)
    books = [normal(1 + i, CODES, FEATURES) / 2**i for i in range(levels)]
    variables = {
        "params": {f"levels_{i}": {"codes": jnp.asarray(codes)} for i, codes in enumerate(books)}
    }
    quantizer = ResidualVectorQuantizer(levels, CODES, FEATURES)
    lookup = functools.partial(quantizer.apply, variables, method="lookup")
    losses = lambda x: quantizer.apply(variables, x).losses["commitment"]
    found, slope = jax.jit(lambda x: (quantizer.apply(variables, x), jax.grad(losses)(x)))(x)
    rest, total, slopes = x.astype(np.float64), 0.0, 0.0
    for i, codes in enumerate(books):
        indices, _ = nearest(rest, codes)
        np.testing.assert_array_equal(found.indices[:, i], indices)
        rest = rest - codes[indices]
        total, slopes = total + np.mean(rest**2), slopes + 2 * rest / rest.size
        np.testing.assert_allclose(lookup(found.indices[:, : i + 1]), x - rest, atol=1e-5)
    np.testing.assert_allclose(found.latents, x - rest, atol=1e-5)
    for name in ("commitment", "codebook"):
        np.testing.assert_allclose(found.losses[name], total, rtol=1e-5)
    np.testing.assert_allclose(slope, slopes, rtol=1e-3, atol=1e-7)


def test_levels_of_a_residual_quantizer_are_vector_quantizers_with_its_attributes():
    options = dict(entropy_temperature=0.7, ema_decay=0.8, restart_threshold=0.5)
    quantizer = ResidualVectorQuantizer(2, CODES, FEATURES, **options)
    shape = jax.ShapeDtypeStruct((9, FEATURES), jnp.float32)
    found, variables = jax.eval_shape(quantizer.init_with_output, jax.random.key(0), shape)
    assert found.losses.keys() == {"commitment", "entropy"}
    assert variables.keys() == {"codebook"} and len(variables["codebook"]) == 2
    for level in quantizer.bind({}).levels:
        assert {name: getattr(level, name) for name in options} == options


def test_factorized_residual_quantizer():
    """Level by level in NumPy: projections of 2 features, and codes nearest in direction.

    The gradient of a level's output is that of its two projections. The second level's remainder
    has the gradient of 1 less the first level's.
    """
    levels, x = 2, jnp.asarray(normal(0, 30, 40, FEATURES))
    quantizer = FactorizedResidualQuantizer(levels, CODES, FEATURES, 2, weight_norm=False)
    draw = lambda a: normal(a.size, *a.shape) / 2
    params = jax.tree.map(draw, jax.eval_shape(quantizer.init, jax.random.key(0), x)["params"])
    apply = functools.partial(quantizer.apply, {"params": params})
    slope = jax.grad(lambda x: apply(x).latents.sum())
    found, coarse, slope = jax.jit(
        lambda x: (apply(x), apply(apply(x).indices[..., :1], method="lookup"), slope(x))
    )(x)
    rest, total, squares = np.float64(x), [], 0.0
    for i in range(levels):
        into, out = (params[f"projections_{way}_{i}"] for way in ("in", "out"))
        codes, z = params[f"codes_{i}"], rest @ into["kernel"][0] + into["bias"]
        indices = np.argmax(unit(z) @ unit(codes).T, axis=-1)
        assert np.mean(indices == found.indices[..., i]) == 1 and len(np.unique(indices)) > 3
        squares += np.mean((z - codes[indices]) ** 2)
        total.append(codes[indices] @ out["kernel"][0] + out["bias"])
        rest = rest - total[-1]
    np.testing.assert_allclose(found.latents, sum(total), atol=1e-5)  # float32
    np.testing.assert_allclose(coarse, total[0], atol=1e-5)
    for name in ("commitment", "codebook"):
        np.testing.assert_allclose(found.losses[name], squares, rtol=1e-5)
    kernels = lambda i: (params[f"projections_{way}_{i}"]["kernel"][0] for way in ("in", "out"))
    first, second = (into @ out for into, out in map(kernels, range(levels)))
    expected = (first + (np.eye(FEATURES) - first) @ second).sum(1)
    np.testing.assert_allclose(slope, np.broadcast_to(expected, x.shape), rtol=1e-4, atol=1e-5)


def test_some_examples_use_their_first_levels_alone():
    """Half of the batch draws a number of levels in training; all use all levels otherwise."""
    quantizer = FactorizedResidualQuantizer(3, CODES, FEATURES, 2, dropout=0.5)
    x = jnp.asarray(normal(0, 32, 5, FEATURES))

    @jax.jit
    def results():
        variables = quantizer.init(jax.random.key(0), x)
        found = quantizer.apply(variables, x, train=True, rngs={"levels": jax.random.key(1)})
        lookup = lambda i: quantizer.apply(variables, found.indices[..., :i], method="lookup")
        losses = lambda i, x: quantizer.clone(num_levels=i).apply(variables, x[None]).losses
        alone = [jax.vmap(functools.partial(losses, i))(x) for i in (1, 2, 3)]
        whole = quantizer.apply(variables, x).latents
        return found, [lookup(i) for i in (1, 2, 3)], whole, alone

    found, coarser, whole, alone = results()
    same = np.stack([np.abs(found.latents - each).max((1, 2)) < 1e-5 for each in coarser])
    np.testing.assert_array_equal(same.sum(0), 1)
    used = 1 + same.argmax(0)
    assert set(used[:16]) == {1, 2, 3} and set(used[16:]) == {3}
    np.testing.assert_allclose(whole, coarser[2], atol=1e-5)
    for name, loss in found.losses.items():  # those of examples alone, by the levels that they use
        each = [alone[count - 1][name][i] for i, count in enumerate(used)]
        np.testing.assert_allclose(loss, np.mean(each), rtol=1e-5)


@pytest.mark.parametrize("levels", [(2,), (3,), (4, 5), (8, 6, 5), (7, 2, 3, 2)])
def test_finite_scalars_enumerate_their_codes(levels):
    quantizer = FiniteScalarQuantizer(levels)
    ks = [range(-(n // 2), n - n // 2) for n in levels]  # −2 … 1 of 4, −2 … 2 of 5
    expected = {
        tuple(np.float32(k) / np.float32(n // 2) for k, n in zip(code, levels, strict=True))
        for code in itertools.product(*ks)
    }
    assert len(expected) == quantizer.num_codes
    # latents all over reach every code and nothing else, and indices say which
    line = np.arctanh(np.linspace(-0.9999, 0.9999, 20, dtype=np.float32))
    x = np.stack(np.meshgrid(*[line] * len(levels)), axis=-1).reshape(-1, len(levels))
    sweep = np.linspace(-6, 6, 50, dtype=np.float32)[:, None] * np.eye(len(levels))[0]

    @jax.jit  # op by op, each shape of each operation is a program
    def results(x, sweep):
        codes = quantizer.apply({}, jnp.arange(quantizer.num_codes), method="lookup")
        return codes, *(quantizer.apply({}, each) for each in (x, 0 * x[:1], sweep))

    codes, found, of_zero, swept = results(x, sweep.astype(np.float32))
    assert set(map(tuple, np.asarray(codes))) == expected
    np.testing.assert_array_equal(np.unique(found.indices), np.arange(quantizer.num_codes))
    np.testing.assert_array_equal(np.asarray(codes)[found.indices], found.latents)
    assert found.losses == {}
    np.testing.assert_array_equal(of_zero.latents, 0)
    assert np.all(np.diff(swept.latents[:, 0]) >= 0)


def words(bits):
    """All of {−1, 1}^bits, the first bit changing fastest: number i at place i."""
    return np.array([code[::-1] for code in itertools.product([-1.0, 1.0], repeat=bits)])


def law_of_codes(x, codes, temperature):
    distances = jnp.sum((x[:, None] - codes) ** 2, axis=-1)
    return jax.nn.softmax(-distances / temperature, axis=-1)


def entropy_of(law):
    return -jnp.sum(law * jnp.log(law), axis=-1)


@pytest.mark.parametrize("bits", [1, 5, 6])
def test_lookup_free_entropy_by_enumeration(bits):
    """Both terms, and their gradient, against those of the softmax over all codes."""
    x, temperature = 0.4 * normal(0, 70, bits), 0.9
    quantizer = LookupFreeQuantizer(bits, entropy_temperature=temperature)

    def brute(x):
        law = law_of_codes(x, words(bits), temperature)
        return entropy_of(law).mean() - entropy_of(law.mean(axis=0))

    ours = jax.jit(jax.value_and_grad(lambda x: quantizer.apply({}, x).losses["entropy"]))(x)
    with jax.enable_x64(True):
        expected = jax.jit(jax.value_and_grad(brute))(x.astype(np.float64))
    np.testing.assert_allclose(ours[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(ours[1], expected[1], rtol=1e-4, atol=1e-6)


def test_binary_spherical_entropy_by_enumeration():
    """The first term is exact.

    The second is that of the marginals of the enumerated mean law, hence an upper bound.
    """
    bits, temperature = 6, 0.3
    x = normal(0, 70, bits)
    x[:, 1] = x[:, 0]  # bits that go together, for which the bound is far from equality
    found = jax.jit(BinarySphericalQuantizer(bits, entropy_temperature=temperature).apply)({}, x)
    codes = words(bits) / np.sqrt(bits)
    law = np.asarray(law_of_codes(unit(x).astype(np.float64), codes, temperature), np.float64)
    mean = law.mean(axis=0)
    marginals = np.array([mean[codes[:, i] > 0].sum() for i in range(bits)])
    bound = sum(entropy([p, 1 - p]) for p in marginals)
    np.testing.assert_allclose(
        found.losses["entropy"], entropy(law, axis=1).mean() - bound, rtol=1e-4
    )
    assert bound > entropy(mean) + 0.05
    np.testing.assert_allclose(
        found.losses["commitment"], np.mean((unit(x) - codes[found.indices]) ** 2), rtol=1e-5
    )


@pytest.mark.parametrize("build", [LookupFreeQuantizer, BinarySphericalQuantizer])
def test_signs_and_their_numbers(build):
    quantizer = build(6)
    codes = words(6) / (np.sqrt(6) if build is BinarySphericalQuantizer else 1)
    x = codes * np.random.default_rng(0).uniform(0.1, 3, codes.shape)

    @jax.jit
    def results(x):
        looked_up = quantizer.apply({}, jnp.arange(64), method="lookup")
        return looked_up, quantizer.apply({}, x), quantizer.apply({}, jnp.zeros(6))

    looked_up, found, of_zero = results(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(looked_up, codes, rtol=1e-6)
    np.testing.assert_array_equal(found.indices, np.arange(64))
    distance = x - codes if build is LookupFreeQuantizer else unit(x) - codes
    np.testing.assert_allclose(found.losses["commitment"], np.mean(distance**2), rtol=1e-5)
    assert of_zero.indices == 0


@pytest.mark.parametrize(
    "quantizer",
    [
        LookupFreeQuantizer(18),
        BinarySphericalQuantizer(18),
        VectorQuantizer(8, 18, entropy_temperature=0.01),
    ],
)
def test_entropies_of_certain_choices(quantizer):
    """All latents at one far corner: no uncertainty of any kind, and finite gradients."""
    x = jnp.full((3, 18), -30.0)
    codes = jnp.where(jnp.arange(8)[:, None] == 0, -30.0, normal(0, 8, 18))
    variables = {"params": {"codes": codes}} if isinstance(quantizer, VectorQuantizer) else {}
    loss, slope = jax.jit(
        jax.value_and_grad(lambda x: quantizer.apply(variables, x).losses["entropy"])
    )(x)
    np.testing.assert_allclose(loss, 0, atol=1e-5)
    assert np.all(np.isfinite(slope))


def test_words_of_18_bits_in_even_use_have_all_the_entropy():
    """Latents at 0 are uncertain of all 18 bits, each by itself and together: the loss is 0.

    Random corners, drawn from 2¹⁸, are nearly all different: −log of their number, in float32
    without a table of 2¹⁸ for each.
    """
    quantizer = LookupFreeQuantizer(18)
    loss = jax.jit(lambda x: quantizer.apply({}, x).losses["entropy"])
    np.testing.assert_allclose(loss(jnp.zeros((2000, 18))), 0, atol=2e-4)  # of 12.5
    corners = np.sign(normal(0, 2000, 18))
    different = len(np.unique(corners, axis=0))
    assert different > 1980
    np.testing.assert_allclose(
        loss(corners), -np.log(2000), atol=0.02
    )  # each pair of equals is 2·log 2/2000 less


@pytest.mark.parametrize(
    ("quantizer", "features", "message"),
    [
        (VectorQuantizer(CODES, FEATURES), 5, "takes latents of 6 features; got 5"),
        (
            VectorQuantizer(CODES, FEATURES, restart_threshold=0.1),
            FEATURES,
            "restart_threshold=0.1 needs .* ema_decay",
        ),
        (FiniteScalarQuantizer((8, 8)), 3, "takes latents of 2 features; got 3"),
        (LookupFreeQuantizer(31), 31, "2147483648 codes have indices beyond int32"),
        (BinarySphericalQuantizer(36), 36, "beyond int32"),
        (FiniteScalarQuantizer((8,) * 11), 11, "beyond int32"),
        (FiniteScalarQuantizer((8, 1)), 2, r"has 2 levels or more; got levels \(8, 1\)"),
    ],
)
def test_faults(quantizer, features, message):
    with pytest.raises(ValueError, match=message):
        quantizer.init(jax.random.key(0), jnp.zeros((1, features)))


EIGHT_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from genjax.nn import VectorQuantizer

mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
quantizer = VectorQuantizer(32, 4, ema_decay=0.8, restart_threshold=0.5)
random = np.random.default_rng(0)
codes = random.standard_normal((32, 4), np.float32)
codes[:3] += 100  # to be restarted

@jax.jit
def step(variables, x, key):
    return quantizer.apply(variables, x, train=True, mutable=["codebook"], rngs={"restart": key})

whole = parts = {"codebook": {"codes": codes, "shares": np.ones(32, np.float32)}}
for i in range(4):
    x = random.standard_normal((64, 4), np.float32)
    of_whole, whole = step(whole, x, jax.random.key(i))
    split = jax.device_put(x, NamedSharding(mesh, P("data")))
    of_parts, parts = step(parts, split, jax.random.key(i))
    assert len(of_parts.latents.sharding.device_set) == 8
    np.testing.assert_array_equal(of_whole.indices, of_parts.indices)
    found = jax.tree.leaves((parts, of_parts.losses))
    for a, b in zip(jax.tree.leaves((whole, of_whole.losses)), found):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # sums in another order
assert np.abs(whole["codebook"]["codes"]).max() < 10  # they were
"""


def test_averages_are_over_all_devices():
    virtual_devices.run(["-c", EIGHT_DEVICES], num_devices=8)
