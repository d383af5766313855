"""SNGAN's and BigGAN's networks: counts, authors' outputs, and their class conditions' laws."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.gans.resnet_gan import ConditionalNorm, Discriminator, Generator, Layers

CLASSES, SIDE = 5, 64
SMALL = {
    "sngan": (
        Generator((64, 64, 32, 16, 8), latent_size=20, num_classes=CLASSES, epsilon=2e-5),
        Discriminator((4, 8, 16, 32, 64), 4, CLASSES, wide=False),
    ),
    "biggan": (
        Generator(
            (64, 64, 32, 16, 8),
            latent_size=20,
            num_classes=CLASSES,
            shared_features=6,
            attention=32,
            spectral_norm=True,
        ),
        Discriminator((8, 16, 32, 64, 128), 4, CLASSES, attention=32),
    ),
}
key = jax.random.key(0)


def inputs():
    """Return labels, latents and images."""
    random = np.random.default_rng(0)
    images = random.standard_normal((3, SIDE, SIDE, 3), np.float32)
    return np.array([0, 3, 4]), random.standard_normal((3, 20), np.float32), images


def filled(network, *arguments):
    """Return variables of a network that NumPy draws, leaf by leaf."""
    random = np.random.default_rng(1)

    def draw(path, leaf):
        last = str(path[-1].key).rpartition("/")[2]
        values = random.standard_normal(leaf.shape).astype(np.float32)
        return {"var": np.exp(values), "u": values}.get(last, 0.2 * values)

    variables = jax.tree.map_with_path(draw, jax.eval_shape(network.init, key, *arguments))
    if "label_embedding_norm" in variables["batch_stats"]:
        # The authors iterate from the table's other side, so start at the singular vector.
        table = variables["params"]["label_embedding"]["embedding"]
        vectors = variables["batch_stats"]["label_embedding_norm"]
        vectors["label_embedding/embedding/u"] = np.linalg.svd(table)[2][:1]
    return variables


def count(network, *arguments):
    outputs, variables = jax.eval_shape(network.init_with_output, key, *arguments)
    return outputs, sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_biggan_has_the_authors_parameters_at_128_pixels():
    generator = Generator(
        tuple(96 * m for m in (16, 16, 8, 4, 2, 1)),
        latent_size=120,
        num_classes=1000,
        shared_features=128,
        attention=64,
        spectral_norm=True,
    )
    discriminator = Discriminator(tuple(96 * m for m in (1, 2, 4, 8, 16, 16)), 5, 1000, 64)
    labels = jnp.zeros(2, int)
    images, parameters = count(generator, jnp.zeros((2, 120)), labels)
    assert images.shape == (2, 128, 128, 3) and parameters == 70_433_988
    logits, parameters = count(discriminator, images, labels)
    assert logits.shape == (2,) and parameters == 87_982_370


def test_sngan_has_the_parameters_of_a_hand_count_at_64_pixels():
    widths, labels = (1024, 512, 256, 128, 64), jnp.zeros(2, int)
    images, parameters = count(Generator(widths, num_classes=1000), jnp.zeros((2, 128)), labels)
    pairs = list(zip(widths[:-1], widths[1:], strict=True))
    convolutions = sum(9 * a * b + 9 * b * b + a * b + 3 * b for a, b in pairs)
    norms = sum(2 * 1000 * (a + b) for a, b in pairs) + 2 * 64
    dense, last = 129 * 16 * 1024, 9 * 64 * 3 + 3
    assert images.shape == (2, 64, 64, 3) and parameters == convolutions + norms + dense + last
    discriminator = Discriminator(widths[::-1], 5, 1000, wide=False)
    _, parameters = count(discriminator, images, labels)
    pairs = [(b, a) for a, b in reversed(pairs)]
    first = 9 * 3 * 64 + 9 * 64**2 + 3 * 64 + 3 * 64
    convolutions = sum(9 * a * a + 9 * a * b + a * b + a + 2 * b for a, b in pairs)
    assert parameters == first + convolutions + 1024 + 1 + 1000 * 1024


@pytest.mark.parametrize(("name", "train"), [("sngan", True), ("biggan", False), ("biggan", True)])
def test_outputs_are_the_authors(name, train):
    """data/README.md says how they were made."""
    with np.load(Path(__file__).parent / "data/resnet_gan.npz") as arrays:
        expected = dict(arrays)
    labels, z, images = map(jnp.asarray, inputs())
    for network, output, x in zip(SMALL[name], ("images", "logits"), (z, images), strict=True):
        variables = filled(network, x, labels)
        apply = lambda variables, x, network=network: network.apply(
            variables, x, labels, train=train, mutable=["batch_stats"]
        )
        made, changed = jax.jit(apply)(variables, x)
        made = made[:, ::8, ::8] if output == "images" else made
        np.testing.assert_allclose(made, expected[f"{name}_{output}_{int(train)}"], atol=2e-5)
        stats = changed["batch_stats"]
        if train and output == "images":
            mean = stats["block_3"]["norm_1"]["norm"]["mean"]
            np.testing.assert_allclose(mean, expected[f"{name}_mean"], atol=1e-6)
        elif train:
            vector = stats["block_4"]["conv_0_norm"]["conv_0/kernel/u"]
            np.testing.assert_allclose(vector, expected[f"{name}_u"], atol=1e-5)


def test_the_logit_is_the_projection_of_the_class_on_the_features():
    network = Discriminator((4, 6), 1, CLASSES)
    images = jax.random.normal(key, (4, 8, 8, 3))
    variables = filled(network, images, jnp.zeros(4, int))
    params, stats = variables["params"], variables["batch_stats"]

    @jax.jit
    def logits(labels):
        return network.apply(variables, images, labels, capture_intermediates=True)

    def normalized(layer, name):
        """Return a weight divided by the singular value after one iteration."""
        weight = params[layer][name]
        u = stats[f"{layer}_norm"][f"{layer}/{name}/u"][0]
        v = weight @ u / np.linalg.norm(weight @ u)
        return weight / np.linalg.norm(v @ weight)

    labels = jnp.array([0, 1, 4, 1])
    made, inner = logits(labels)
    features = np.maximum(inner["intermediates"]["block_1"]["__call__"][0], 0).sum((1, 2))
    vectors = normalized("label_embedding", "embedding")[labels]
    plain = features @ normalized("head", "kernel")[:, 0] + params["head"]["bias"]
    np.testing.assert_allclose(made, (vectors * features).sum(-1) + plain, rtol=1e-4)


def test_the_optimal_logit_of_gaussian_classes_is_a_projection():
    """Data N(μ_y, s²) and samples N(ν_y, s²) per class y have a logit linear in x and 1.

    log p(x|y)/q(x|y) = ((μ_y − ν_y)·x + (|ν_y|² − |μ_y|²)/2)/s², for every x and y exactly.
    Features are relu(x)/√2, relu(−x)/√2 and 1, with the √2 of spectral norm. s² is such that the
    classes' vectors have the norm 1.
    """
    random = np.random.default_rng(0)
    real, fake = random.standard_normal((2, CLASSES, 2))
    difference = np.sqrt(2) * (real - fake)
    offset = ((fake**2).sum(1) - (real**2).sum(1))[:, None] / 2
    vectors = np.concatenate([difference, -difference, offset], axis=1)
    variance = np.linalg.norm(vectors, 2)
    network = Discriminator((5,), 0, CLASSES)
    x, labels = jnp.asarray(3 * random.standard_normal((200, 1, 1, 2))), jnp.arange(200) % CLASSES
    variables = jax.tree.map(
        lambda a: np.zeros(a.shape), jax.eval_shape(network.init, key, x, labels)
    )
    shortcut = variables["params"]["block_0"]["shortcut"]
    shortcut["kernel"][0, 0] = np.concatenate([np.eye(2), -np.eye(2), np.zeros((2, 1))], axis=1)
    shortcut["bias"][-1] = 1
    variables["params"]["label_embedding"]["embedding"][:] = vectors

    stats = variables["batch_stats"]
    for layers, name, weight in (
        (stats["block_0"]["shortcut_norm"], "shortcut/kernel", shortcut["kernel"][0, 0]),
        (stats["label_embedding_norm"], "label_embedding/embedding", vectors),
    ):
        layers[f"{name}/u"] = np.linalg.svd(weight)[2][:1]  # where power iteration ends
    made = jax.jit(network.apply)(variables, x, labels)
    density = lambda mean: -((x[:, 0, 0] - mean[labels]) ** 2).sum(1) / (2 * variance)
    np.testing.assert_allclose(made, density(real) - density(fake), rtol=1e-4, atol=1e-4)


LAYERS = Layers(spectral_norm=False, dtype=jnp.float32, param_dtype=jnp.float32)
maps = 1 + 2 * jax.random.normal(key, (6, 3, 3, 4))


@pytest.mark.parametrize("train", [False, True])
def test_conditional_norm_of_one_class_is_batch_norm(train):
    random = np.random.default_rng(0)
    scale, shift, mean = random.standard_normal((3, 4)).astype(np.float32)
    stats = {"mean": mean, "var": np.exp(shift)}
    conditional = ConditionalNorm(LAYERS, 1, 1e-5)
    tables = {"scale": {"embedding": scale[None]}, "shift": {"embedding": shift[None]}}
    plain = nn.BatchNorm(use_running_average=not train, momentum=0.9)
    made, changed = conditional.apply(
        {"params": tables, "batch_stats": {"norm": stats}},
        maps,
        jnp.zeros(6, int),
        train,
        mutable=["batch_stats"],
    )
    expected, others = plain.apply(
        {"params": {"scale": scale, "bias": shift}, "batch_stats": stats},
        maps,
        mutable=["batch_stats"],
    )
    np.testing.assert_allclose(made, expected, atol=1e-5)
    kept = changed["batch_stats"]["norm"]
    jax.tree.map(np.testing.assert_array_equal, kept, others["batch_stats"])


def test_classes_share_the_statistics_and_have_scales_and_shifts_of_their_own():
    labels = jnp.array([0, 1, 2, 2, 1, 0])
    norm = ConditionalNorm(LAYERS, 3, 1e-5)
    random = np.random.default_rng(0)
    tables = {name: {"embedding": random.standard_normal((3, 4))} for name in ("scale", "shift")}
    stats = {"norm": {"mean": np.zeros(4), "var": np.ones(4)}}
    variables = {"params": tables, "batch_stats": stats}
    apply = lambda labels: norm.apply(variables, maps, labels, True, mutable=["batch_stats"])[0]
    normalized = (maps - maps.mean((0, 1, 2))) / np.sqrt(maps.var((0, 1, 2)) + 1e-5)
    scale, shift = (tables[name]["embedding"][labels] for name in ("scale", "shift"))
    expected = normalized * scale[:, None, None] + shift[:, None, None]
    np.testing.assert_allclose(apply(labels), expected, atol=1e-5)


def test_initial_norms_of_all_classes_are_plain():
    labels = jnp.array([0, 1, 2, 2, 1, 0])
    made, _ = ConditionalNorm(LAYERS, 3, 1e-5).init_with_output(key, maps, labels, True)
    np.testing.assert_allclose(made.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(made.std((0, 1, 2)), 1, atol=1e-4)


def test_skipped_latents_reach_their_own_block_alone():
    """The last part of z is no part of the first map: it changes the last block's norms."""
    generator = Generator(
        (8, 8, 8), latent_size=6, num_classes=CLASSES, shared_features=3, spectral_norm=True
    )
    z, labels = jax.random.normal(key, (1, 6)), jnp.array([2])
    variables = filled(generator, z, labels)
    apply = jax.jit(lambda z: generator.apply(variables, z, labels, capture_intermediates=True)[1])
    maps = lambda z: {
        k: v["__call__"][0] for k, v in apply(z)["intermediates"].items() if "k_" in k
    }
    before, after = maps(z), maps(z.at[0, 4:].add(1.0))
    np.testing.assert_array_equal(before["block_0"], after["block_0"])
    assert np.abs(before["block_1"] - after["block_1"]).max() > 1e-3


def test_what_does_not_fit_is_an_error():
    arguments = key, jnp.zeros((1, 7)), jnp.zeros(1, int)
    shared = Generator((8, 8, 8), num_classes=CLASSES, shared_features=3)
    with pytest.raises(ValueError, match="latent_size 7 does not divide into 3 parts: one for the"):
        jax.eval_shape(shared.init, *arguments)
    with pytest.raises(ValueError, match="a block's output, of 8, 16, or 0 for none; got 32"):
        jax.eval_shape(Generator((8, 8, 8), attention=32).init, *arguments)
    with pytest.raises(ValueError, match="of 4, 2, or 0 for none; got 8"):
        jax.eval_shape(Discriminator((8, 8), 2, attention=8).init, key, jnp.zeros((1, 8, 8, 3)))


def test_bfloat16_keeps_parameters_and_outputs_float32():
    generator, discriminator = (network.clone(dtype=jnp.bfloat16) for network in SMALL["biggan"])
    labels, z, _ = inputs()
    images, variables = jax.eval_shape(generator.init_with_output, key, z, labels)
    logits, others = jax.eval_shape(discriminator.init_with_output, key, images, labels)
    leaves = jax.tree.leaves((images, variables, logits, others))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
