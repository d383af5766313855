"""Adaptive augmentation against its authors' program (data/README.md) and closed forms."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from genjax.adversarial import adaptive, non_saturating
from genjax.adversarial.adaptive import ADA, Strengths
from tests.products import precisions

REFERENCE = dict(np.load(Path(__file__).with_name("data") / "adaptive.npz"))
HEIGHT, WIDTH = REFERENCE["images"].shape[1:3]
NOTHING = Strengths(0.0, 0.0, 0.0)
ALL = Strengths(1.0, 1.0, 1.0, 1.0, 0.0, 1.0)


@pytest.fixture(scope="module")
def changes():
    """The changes of the authors' percentile 0.8, by group."""
    percentile, sides = 0.8, np.array([WIDTH, HEIGHT])
    uniform, normal = 2 * percentile - 1, stats.norm.ppf(percentile) / np.sqrt(2)
    pixels = jnp.asarray(np.round(uniform / 8 * sides), jnp.float32)
    fractions = jnp.asarray(normal / 8 * sides, jnp.float32)
    double = 2 ** (0.2 * normal)
    blitted = adaptive.geometry_of(1, 3, pixels, 1.0, 0.0, 1.0, 0.0, jnp.zeros(2))
    moved = adaptive.geometry_of(
        0, 0, jnp.zeros(2), double, uniform * np.pi, double, 0.0, fractions
    )
    color = adaptive.color_of(0.2 * normal, 2 ** (normal / 2), 1, uniform * np.pi, 2**normal)
    change = adaptive.Change(
        blitted,
        color,
        adaptive.gains_of([2**normal] * 4),
        jnp.zeros((HEIGHT, WIDTH, 3)),
        jnp.array([percentile, percentile, 0.5]),
    )
    return {
        **dict.fromkeys(("blitting", "color", "grey", "filtering", "cutout"), change),
        "geometry": change._replace(geometry=moved),
        "all": change._replace(geometry=blitted @ moved),
    }


@functools.partial(jax.jit, static_argnums=2)
def applied(images, change, strengths):
    return jax.vmap(lambda image: adaptive.apply(image, change, strengths))(images)


@pytest.mark.parametrize(
    "name", ["blitting", "geometry", "color", "grey", "filtering", "cutout", "all"]
)
def test_changes_are_the_authors(name, changes):
    group = {"grey": "color"}.get(name, name)
    strengths = ALL if name == "all" else NOTHING._replace(**{group: 1.0})
    images = REFERENCE["images"][..., : 1 if name == "grey" else 3]
    found = applied(images, changes[name], strengths)
    # float32 on both sides; places of pixels are rounded by 1e-6.
    np.testing.assert_allclose(found, REFERENCE[name], rtol=0, atol=1e-5)
    assert np.abs(found - images).max() > 0.1


def test_a_hole_has_its_centre_at_x_and_y_and_half_of_each_side():
    found = adaptive._cut(jnp.ones((4, 8, 1)), jnp.array([0.25, 0.5, 0.5]))[..., 0]
    expected = np.ones((4, 8))
    expected[1:3, 0:4] = 0
    np.testing.assert_array_equal(found, expected)


def test_places_between_and_beyond_pixels_are_those_of_scipy():
    random = np.random.default_rng(0)
    image, places = random.standard_normal((5, 7, 1)), random.uniform(-9, 15, (2, 20, 30))
    expected = ndimage.map_coordinates(image[..., 0], places, order=1, mode="grid-constant")
    found = adaptive._interpolated(*(jnp.asarray(a, jnp.float32) for a in (image, *places)))
    np.testing.assert_allclose(found[..., 0], expected, atol=1e-5)  # of float32 places


def test_bands_are_the_authors_and_sum_to_the_image():
    np.testing.assert_allclose(adaptive._bank(), REFERENCE["bank"], rtol=0, atol=1e-7)
    whole = adaptive._bank().sum(axis=0)  # all gains 1 change nothing
    np.testing.assert_allclose(whole, np.arange(len(whole)) == len(whole) // 2, atol=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_no_product_is_rounded_on_tpus(channels):
    """Outer pixels of 512×512 images would move by half a pixel, even where nothing changes."""
    image, ada = jnp.zeros((64, 64, channels)), ADA(changes=Strengths._fields)
    found = precisions(ada, jax.random.key(0), image, jnp.float32(0.5))
    assert found and set(found) == {"HIGHEST"}


SHAPE = (6, 8, 3)


@functools.partial(jax.jit, static_argnums=1)
def drawn(probability, count):
    draw = lambda key: adaptive.draw(key, probability, SHAPE, Strengths(*[1.0] * 6))
    return jax.vmap(draw)(jax.random.split(jax.random.key(0), count))


def test_nothing_happens_with_probability_zero():
    change = jax.tree.map(lambda a: a[0], drawn(0.0, 20_000))
    images = jax.random.normal(jax.random.key(1), (2, *SHAPE))
    groups = Strengths(1.0, 1.0, 1.0, 0.0, 1.0, 1.0)  # the bank is wider than this image
    # The symlets up and down are each other's inverse.
    np.testing.assert_allclose(applied(images, change, groups), images, atol=1e-5)
    np.testing.assert_allclose(change.gains, 1, atol=1e-6)


def test_each_change_happens_as_often_as_it_should():
    """Shares of 20,000 draws with p = 0.6, within 4.5 standard deviations (one in 10⁵ fails)."""
    p, count = 0.6, 20_000
    change = drawn(p, count)
    share = lambda happened: np.mean(np.asarray(happened))
    deviation = np.sqrt(0.25 / count)
    assert abs(share(change.hole[:, 2] > 0) - p) < 4.5 * deviation
    assert abs(share(np.abs(change.noise).max((1, 2, 3)) > 0) - p) < 4.5 * deviation
    assert abs(share(np.abs(change.gains - 1).max(1) < 1e-6) - (1 - p) ** 4) < 4.5 * deviation
    offsets = np.asarray(change.color)[:, :3, 3].mean(1)
    assert abs(share(np.abs(offsets) > 1e-6) - p) < 4.5 * deviation
    # The determinant of the geometry is ±1/scale², and negative after a flip.
    determinant = np.linalg.det(np.asarray(change.geometry)[:, :2, :2])
    assert abs(share(determinant < 0) - p / 2) < 4.5 * deviation
    assert abs(share(np.abs(np.abs(determinant) - 1) > 1e-4) - p) < 4.5 * deviation


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def drawn_by(probability, count, shape, strengths):
    draw = lambda key: adaptive.draw(key, probability, shape, strengths)
    return jax.vmap(draw)(jax.random.split(jax.random.key(2), count))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def geometries(*arguments):
    """Return the geometries of `drawn_by` alone, so that no noise is drawn."""
    return drawn_by(*arguments).geometry


def test_the_numbers_of_changes_have_the_authors_laws():
    """With p = 1 every change happens; its number is read from the matrices (table 3).

    The geometry is G = R(before)·D·R(after)/scale with D = diag(1/stretch, stretch), and the last
    change moves by a fraction. A colour matrix is ±contrast along the axis of greys, and saturation
    times contrast and a turn across it.
    """
    change = drawn_by(1.0, 5000, SHAPE, Strengths(0.0, 1.0, 1.0, 1.0, 1.0, 1.0))
    change = jax.tree.map(lambda a: np.asarray(a, float), change)
    angle = lambda y, x: stats.uniform(-np.pi, 2 * np.pi).cdf(np.arctan2(y, x))
    g = change.geometry[:, :2, :2]
    wide, narrow = np.linalg.svd(g, compute_uv=False).T
    moved = np.linalg.inv(change.geometry)[:, :2, 2]
    axes = np.linalg.qr(np.ones((3, 1)), mode="complete")[0]
    color = axes.T @ change.color[:, :3, :3] @ axes
    grey, chroma = color[:, 0, 0], color[:, 1:, 1:]
    saturated = np.sqrt(np.linalg.det(chroma))
    shares = {  # uniform, by the distribution function of each law
        "scale": stats.norm(0, 0.2).cdf(-np.log2(np.linalg.det(g)) / 2),
        "stretch": stats.halfnorm(0, 0.2).cdf(np.log2(wide / narrow) / 2),
        "turns added": angle(g[:, 1, 0] - g[:, 0, 1], g[:, 0, 0] + g[:, 1, 1]),
        "turns subtracted": angle(g[:, 1, 0] + g[:, 0, 1], g[:, 0, 0] - g[:, 1, 1]),
        "fraction of x": stats.norm(0, 0.125 * SHAPE[1]).cdf(moved[:, 0]),
        "fraction of y": stats.norm(0, 0.125 * SHAPE[0]).cdf(moved[:, 1]),
        "brightness": stats.norm(0, 0.2).cdf(change.color[:, :3, 3].mean(1) / grey),
        "contrast": stats.norm(0, 0.5).cdf(np.log2(np.abs(grey))),
        "saturation": stats.norm(0, 1).cdf(np.log2(saturated / np.abs(grey))),
        "hue": angle(chroma[:, 1, 0], chroma[:, 0, 0]),
        "gains": stats.norm(0, 2**0.5).cdf(np.log2(change.gains[:, 1] / change.gains[:, 0])),
        "noise": stats.halfnorm(0, 0.1).cdf(change.noise.std((1, 2, 3))),
        "hole": change.hole[:, 0],
    }
    for name, share in shares.items():
        assert stats.kstest(share, "uniform").pvalue > 1e-4, name
    assert abs(np.mean(grey < 0) - 0.5) < 4.5 * np.sqrt(0.25 / 5000)
    np.testing.assert_array_equal(change.hole[:, 2], 0.5)


def test_whole_pixels_and_turns_have_the_authors_laws():
    count = 5000
    blitted = geometries(1.0, count, (32, 48, 3), Strengths(1.0, 0.0, 0.0))
    moved = np.linalg.inv(np.asarray(blitted, float))[:, :2, 2].round(3)
    for axis, most in enumerate((6, 4)):  # an eighth of each side
        expected = np.full(2 * most + 1, 1 / (2 * most))
        expected[[0, -1]] /= 2
        found = [np.sum(moved[:, axis] == place) for place in range(-most, most + 1)]
        assert stats.chisquare(found, count * expected).pvalue > 1e-4
    p = 0.6  # of a turn before or after the stretch
    turned = geometries(p, count, SHAPE, Strengths(0.0, 1.0, 0.0))
    share = np.mean(np.abs(turned[:, 0, 1]) + np.abs(turned[:, 1, 0]) > 1e-6)
    assert abs(share - p) < 4.5 * np.sqrt(p * (1 - p) / count)
    always = [geometries(p, count, SHAPE, Strengths(0.0, 1.0, 0.0)) for p in (1.0, 1.3)]
    np.testing.assert_array_equal(*always)  # p may rise above 1


def test_below_one_the_changes_of_a_law_can_be_undone():
    """Quarter turns mix four orientations: with p = 1 all laws become one, with less none do.

    The turns drawn have the shares (1 − p) + p/4 and p/4, so laws of orientations are multiplied by
    a matrix with the eigenvalues 1 and 1 − p (appendix C).
    """

    @functools.partial(jax.jit, static_argnums=1)
    def turns(probability, count):
        strengths = Strengths(blitting=1.0, geometry=0.0, color=0.0)
        draw = lambda key: adaptive.draw(key, probability, SHAPE, strengths).geometry
        matrix = jax.vmap(draw)(jax.random.split(jax.random.key(1), count))
        flipped = jnp.linalg.det(matrix[:, :2, :2]) < 0
        angle = jnp.arctan2(matrix[:, 1, 0], matrix[:, 1, 1])  # the second row is not flipped
        return jnp.round(angle / (jnp.pi / 2)).astype(int) % 4, flipped

    count = 20_000
    for p, least_eigenvalue in ((0.5, 0.5), (1.0, 0.0)):
        quarters, flipped = (np.asarray(a) for a in turns(p, count))
        shares = np.bincount(quarters, minlength=4)
        expected = np.array([1 - p + p / 4, *[p / 4] * 3])
        assert stats.chisquare(shares, count * expected).pvalue > 1e-4
        circulant = np.stack([np.roll(shares / count, i) for i in range(4)])
        found = np.sort(np.abs(np.linalg.eigvals(circulant)))[0]
        assert abs(found - least_eigenvalue) < 0.03
        assert abs(flipped.mean() - p / 2) < 4.5 * np.sqrt(0.25 / count)


def test_the_probability_moves_towards_the_target_and_not_below_zero():
    move = lambda p, r_t: float(adaptive.adjusted(p, r_t, images=256, images_to_one=1e5))
    assert move(0.2, 0.9) == pytest.approx(0.2 + 0.00256)
    assert move(0.2, 0.1) == pytest.approx(0.2 - 0.00256)
    assert move(0.2, 0.6) == pytest.approx(0.2) and move(0.001, 0.1) == 0
    # A discriminator that overfits less as p grows: r_t = 0.9 − 0.5·p reaches 0.6 at p = 0.6.
    p = 0.0
    for _ in range(400):
        p = move(p, 0.9 - 0.5 * p)
    assert abs(p - 0.6) <= 0.00256


def probabilities(ada, r_t, images, steps):
    """Return p after each step; `r_t(p, key)` is the mean sign of a step's images."""

    def step(adaptation, i):
        found = r_t(adaptation.probability, jax.random.fold_in(jax.random.key(0), i))
        adaptation = ada.update(adaptation, i, found, images)
        return adaptation, (adaptation.probability, found)

    return map(np.asarray, jax.jit(lambda: jax.lax.scan(step, ada.init(), jnp.arange(steps)))()[1])


def test_at_the_published_speed_the_probability_rises_to_one_in_500_thousand_images():
    assert ADA(changes=("blitting", "geometry", "color")) == ADA()  # the authors' "bgc"
    p, _ = probabilities(ADA(), lambda p, key: 1.0, images=125, steps=4000)
    np.testing.assert_array_equal(p[:3], 0)
    np.testing.assert_allclose(p[3:7], 500 / 500_000, rtol=1e-6)  # four batches, all at once
    np.testing.assert_allclose(p[-1], 1, rtol=1e-4)  # a sum of 1,000 numbers in float32


def test_in_a_closed_loop_r_t_reaches_its_target():
    """Logits of real images are N(1.5 − 1.2p, 1), so r_t = 2Φ(1.5 − 1.2p) − 1 is 0.6 at one p."""
    ada, images = ADA(images_to_one=20_000.0), 64

    def r_t(p, key):
        return jnp.sign(1.5 - 1.2 * p + jax.random.normal(key, (images,))).mean()

    p, found = probabilities(ada, r_t, images, 4000)
    expected = (1.5 - stats.norm.ppf(0.8)) / 1.2
    assert p[100] < expected - 0.1  # 100 steps can raise p by 0.32
    # Signs of 64 images deviate by 0.1, so means over 3,000 batches by 0.002.
    np.testing.assert_allclose(found[1000:].mean(), 0.6, atol=0.01)
    np.testing.assert_allclose(p[1000:].mean(), expected, atol=0.02)


def test_an_unknown_group_of_changes_is_refused():
    with pytest.raises(ValueError, match="no changes 'colour'; there are blitting"):
        ADA(changes=("colour",))


def orientations():
    """Return images whose upper, left, lower or right half is bright."""
    up = jnp.where(jnp.arange(8)[:, None, None] < 4, 1.0, -1.0) * jnp.ones((8, 8, 1))
    return jnp.stack([jnp.rot90(up, turns) for turns in range(4)])


def theory(p):
    """Return P(seen | image): a quarter turn of probability p, then a flip of probability p."""
    turn, flip = np.roll(np.eye(4), 1, axis=1), np.eye(4)[[0, 3, 2, 1]]
    turns = (1 - p) * np.eye(4) + p / 4 * sum(np.linalg.matrix_power(turn, n) for n in range(4))
    return turns @ ((1 - p / 2) * np.eye(4) + p / 2 * flip)


def test_orientations_are_seen_as_often_as_the_theory_says():
    """Moves by a pixel leave the bright half where it is."""
    count = 2000

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    def seen(key, image, p):
        changed = ADA(changes=("blitting",))(key, image, p)
        return jnp.argmax(jnp.einsum("nhwc,hwc->n", orientations(), changed))

    keys = jax.random.split(jax.random.key(0), count)
    for p in (0.6, 1.0):
        for image, expected in zip(orientations(), theory(p), strict=True):
            found = np.bincount(seen(keys, image, p), minlength=4) / count
            np.testing.assert_allclose(found, expected, atol=4.5 * np.sqrt(0.25 / count))


@pytest.mark.parametrize(("p", "leaks"), [(0.6, False), (1.0, True)])
def test_a_generator_learns_the_images_if_their_changes_can_be_undone(p, leaks):
    """A game of exact laws: the generator's shares of orientations, and the best discriminator.

    The discriminator sees both laws through the same changes. With p = 1 all laws look alike, and
    the generator keeps the shares it began with.
    """
    real, first = np.array([0.6, 0.2, 0.15, 0.05]), np.array([0.1, 0.1, 0.4, 0.4])
    see = jnp.asarray(theory(p))

    def loss(logits):
        seen_real, seen_fake = real @ see, jax.nn.softmax(logits) @ see
        best = jax.lax.stop_gradient(jnp.log(seen_real / seen_fake))
        each = non_saturating.generator(*jnp.broadcast_arrays(best[:, None], best))
        return seen_real @ each @ seen_fake

    descend = lambda logits, _: (logits - 4 * jax.grad(loss)(logits), None)
    logits, _ = jax.jit(lambda x: jax.lax.scan(descend, x, length=5000))(jnp.log(first))
    np.testing.assert_allclose(jax.nn.softmax(logits), first if leaks else real, atol=0.01)


def test_gradients_reach_the_image_through_every_change():
    strengths = Strengths(*[1.0] * 6)
    image = jax.random.uniform(jax.random.key(0), (24, 24, 3), minval=-1)
    weights = jax.random.normal(jax.random.key(1), image.shape)

    @jax.jit
    def gradient(key):
        change = adaptive.draw(key, 0.9, image.shape, strengths)
        loss = lambda image: jnp.sum(weights * adaptive.apply(image, change, strengths))
        return jax.grad(loss)(image), loss(image), loss(0 * image)

    for seed in range(3):
        slope, value, constant = gradient(jax.random.key(seed))
        # The changes are affine in the image, so the gradient tells their effect exactly.
        assert jnp.sum(slope * image) == pytest.approx(float(value - constant), rel=1e-3, abs=1e-2)
        assert np.isfinite(slope).all() and np.abs(slope).max() > 0.1


def test_other_channels_are_refused(changes):
    with pytest.raises(ValueError, match="2 channels"):
        adaptive.apply(jnp.zeros((HEIGHT, WIDTH, 2)), changes["color"], ALL)
