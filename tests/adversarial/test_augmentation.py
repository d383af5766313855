import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from genjax.adversarial import ADA, augment, color, cutout, translation

COUNT = 6000
KEYS = jax.random.split(jax.random.key(0), COUNT)


def drawn(augmentation, image, keys=KEYS):
    """Return the image after the augmentation with each key."""
    return np.asarray(
        jax.jit(jax.vmap(augmentation, (0, None)))(keys, jnp.asarray(image, jnp.float32))
    )


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).uniform(-1, 1, (4, 5, 3))


def test_color(image):
    """The result gives brightness, saturation and contrast, and they give all of the result."""
    result = drawn(color, image).astype(np.float64)
    brightness = result.mean((1, 2, 3)) - image.mean()
    grey, result_grey = image.mean(2), result.mean(3)
    contrast = (result_grey[:, 0, 0] - result_grey[:, 3, 4]) / (grey[0, 0] - grey[3, 4])
    both = (result[:, 0, 0, 0] - result_grey[:, 0, 0]) / (image[0, 0, 0] - grey[0, 0])
    saturation = both / contrast
    brighter = image + brightness[:, None, None, None]
    greys = brighter.mean(3, keepdims=True)
    saturated = greys + saturation[:, None, None, None] * (brighter - greys)
    means = saturated.mean((1, 2, 3), keepdims=True)
    expected = means + contrast[:, None, None, None] * (saturated - means)
    # The quotients enlarge float32's rounding about ten times.
    np.testing.assert_allclose(result, expected, atol=1e-5)

    for draws, low, high in ((brightness, -0.5, 0.5), (saturation, 0, 2), (contrast, 0.5, 1.5)):
        assert low - 1e-5 <= draws.min() and draws.max() <= high + 1e-5
        # The seed is fixed. 6000 draws reveal a law that is wrong by 4 % somewhere almost surely.
        assert kstest(draws, "uniform", (low, high - low)).pvalue > 1e-3
    independent = np.corrcoef([brightness, saturation, contrast])[np.triu_indices(3, 1)]
    assert np.abs(independent).max() < 4 / np.sqrt(COUNT)


def moved(image, down, right):
    height, width, _ = image.shape
    result = np.zeros_like(image)
    rows, columns = (
        slice(max(0, by), min(side, side + by)) for by, side in ((down, height), (right, width))
    )
    result[rows, columns] = image[
        max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)
    ]
    return result


def places(results, candidates):
    """Return which candidate each result equals, exactly."""
    same = (results[:, None] == np.asarray(candidates, np.float32)[None]).all((2, 3, 4))
    assert np.all(same.sum(1) == 1)
    return np.argmax(same, axis=1)


def assert_uniform(indices, count):
    """Check the counts by chi-square with a fixed seed.

    If one of 25 were half as likely as the others, 6000 draws would reveal it at this level with
    probability .98. If it were one of 15, they would reveal it surely (a noncentral chi-square
    distribution).
    """
    assert chisquare(np.bincount(indices, minlength=count)).pvalue > 1e-3


@pytest.mark.parametrize("height, width, reach", [(8, 16, (1, 2)), (12, 3, (2, 0))])
def test_translation(height, width, reach):
    """Shifts are whole pixels, up to an eighth of each side, rounded half up.

    8 → 1, 16 → 2, 12 → 2, 3 → 0.
    """
    image = 1 + np.arange(height * width * 2).reshape(height, width, 2)
    candidates = [
        moved(image, down, right)
        for down in range(-reach[0], reach[0] + 1)
        for right in range(-reach[1], reach[1] + 1)
    ]
    assert_uniform(places(drawn(translation, image), candidates), len(candidates))


@pytest.mark.parametrize("height, width, sides", [(4, 5, (2, 3)), (3, 4, (2, 2))])
def test_cutout(height, width, sides):
    """The box has half of each side, rounded half up.

    A box with an even side has its centre between pixels, so there is one more place for it.
    """
    image = 1 + np.arange(height * width * 3).reshape(height, width, 3)
    candidates = []
    for centre in np.ndindex(height + 1 - sides[0] % 2, width + 1 - sides[1] % 2):
        boxed = image.copy()
        rows, columns = (
            slice(max(0, c - side // 2), c - side // 2 + side)
            for c, side in zip(centre, sides, strict=True)
        )
        boxed[rows, columns] = 0
        candidates.append(boxed)
    assert len(candidates) == {(4, 5): 5 * 5, (3, 4): 4 * 5}[height, width]
    found = places(drawn(cutout, image), candidates)
    assert_uniform(found, len(candidates))
    areas = np.array([np.sum(candidate[:, :, 0] == 0) for candidate in candidates])
    assert areas.max() == sides[0] * sides[1] > areas.min()  # boxes are cut at the border
    assert abs(areas[found].mean() - areas.mean()) < 4 * areas.std() / np.sqrt(COUNT)


@pytest.mark.parametrize("augmentation", [color, translation, cutout])
def test_gradients_flow(float64, augmentation):
    """Each augmentation is affine in the image, so differences of any size are exact.

    ∇⟨v, f⟩·u = ⟨v, f(x + u) − f(x)⟩.
    """
    x, u, v = jnp.asarray(np.random.default_rng(1).normal(size=(3, 6, 8, 3)))

    def both(key):
        gradient = jax.grad(lambda x: jnp.sum(v * augmentation(key, x)))(x)
        return jnp.sum(gradient * u), jnp.sum(v * (augmentation(key, x + u) - augmentation(key, x)))

    slopes, differences = jax.jit(jax.vmap(both))(KEYS[:20])
    np.testing.assert_allclose(slopes, differences, rtol=1e-9)
    assert np.all(slopes != 0)


def test_each_image_has_its_own_draw_whatever_its_batch():
    images = jnp.asarray(np.random.default_rng(2).uniform(-1, 1, (5, 8, 8, 3)), jnp.float32)
    everything = (color, translation, cutout)
    run = jax.jit(lambda keys, images: augment(keys, images, everything))
    together = run(KEYS[:5], images)
    assert together.shape == images.shape and together.dtype == images.dtype
    np.testing.assert_array_equal(run(KEYS[:5], images), together)
    for i in range(5):
        alone = run(KEYS[i : i + 1], images[i : i + 1])
        # Means may be summed in another order.
        np.testing.assert_allclose(alone[0], together[i], atol=1e-6)
    same = run(KEYS[:5], jnp.broadcast_to(images[:1], images.shape))
    assert all(np.any(same[i] != same[j]) for i in range(5) for j in range(i))


def test_augmentations_follow_one_another_with_draws_of_their_own():
    images = jnp.ones((2, 1, 1, 1))
    double, increase = (lambda key, image: 2 * image), (lambda key, image: image + 1)
    np.testing.assert_array_equal(augment(KEYS[:2], images, [double, increase]).ravel(), [3, 3])
    np.testing.assert_array_equal(augment(KEYS[:2], images, [increase, double]).ravel(), [4, 4])
    np.testing.assert_array_equal(augment(KEYS[:2], images, []), images)

    noise = lambda scale: lambda key, image: image + scale * jax.random.normal(key, image.shape)
    sums = augment(KEYS, jnp.zeros((COUNT, 1, 1, 1)), [noise(1.0), noise(1.0)])
    # It is √2 if the two are independent and 2 if they are the same, up to four standard errors.
    assert abs(np.std(sums) - np.sqrt(2)) < 4 * np.sqrt(2) / np.sqrt(2 * COUNT)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    "augmentation", [color, translation, cutout, functools.partial(ADA(), probability=0.0)]
)
def test_bytes_are_refused(augmentation):
    """Their 0 is black and not grey, and filters would round their weights."""
    with pytest.raises(ValueError, match="floats in .* got uint8"):
        augmentation(KEYS[0], image=jnp.zeros((8, 8, 1), jnp.uint8))


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    "augmentation", [color, translation, cutout, functools.partial(ADA(), probability=0.5)]
)
def test_a_batch_is_refused_where_its_images_would_share_a_draw(augmentation):
    with pytest.raises(ValueError, match=r"one image .* got \[2, 8, 8, 1\]: .*augment"):
        augmentation(KEYS[0], image=jnp.zeros((2, 8, 8, 1)))
