"""The program that explores a latent space: its parts on known generators, and the whole."""

import functools
import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import digits_gan
from experiments.evaluation import latent_space
from experiments.inputs.spaces import Pixels
from genjax import adversarial
from genjax.metrics import LPIPS
from genjax.models import gans
from genjax.models.gans import dcgan
from genjax.training.pictures import read_rows
from tests.experiments.bidirectional_run import untrained_run
from tests.experiments.launching import run as run_command

QUICK = {"xla_backend_optimization_level": 0}  # compiles in less time, for what runs once


def styles(images=lambda w, labels: w):
    """A space whose latents, of 4 styles of 3, are drawn as normal numbers."""
    return latent_space.Space(
        "w_plus",
        images,
        lambda key, labels: jax.random.normal(key, (len(labels), 4, 3)),
        adversarial.lerp,
    )


def test_a_walk_comes_back():
    frames = latent_space.walk(styles(), jax.random.key(0), jnp.zeros(2, int))
    assert frames.shape == (latent_space.STOPS * latent_space.STEPS + 1, 2, 4, 3)
    np.testing.assert_array_equal(frames[0], frames[-1])
    stops = frames[:: latent_space.STEPS]
    np.testing.assert_allclose(
        frames[latent_space.STEPS // 2], (stops[0] + stops[1]) / 2, rtol=1e-5, atol=1e-6
    )


def test_mixing_takes_coarse_styles_from_the_left_and_fine_ones_from_above():
    grid = latent_space.mixing(styles(), jax.random.key(0), jnp.zeros(3, int))
    assert grid.shape == (4, 3, 4, 3)
    for row in range(3):
        for column in range(3):
            np.testing.assert_array_equal(grid[1 + row, column, :2], grid[0, row, :2])
            np.testing.assert_array_equal(grid[1 + row, column, 2:], grid[0, column, 2:])


def test_path_length_of_latents_themselves_in_full_precision():
    """It is the mean square of the ends' difference, at any precision of other programs."""
    precisions, key, labels = [], jax.random.key(0), jnp.zeros(200, int)

    def images(w, labels):
        precisions.append(jax.config.jax_default_matmul_precision)
        return w

    with jax.default_matmul_precision("bfloat16"):
        length = latent_space.path_length(styles(images), key, labels)
    start, end = (jax.random.normal(each, (200, 4, 3)) for each in jax.random.split(key, 3)[:2])
    # In float32, steps of 1e-4 between numbers of 1 are known to 1e-3.
    np.testing.assert_allclose(length, jnp.square(end - start).mean(), rtol=2e-3)
    assert set(precisions) == {"highest"}


def test_directions_go_through_the_image_itself():
    kernel = jnp.repeat(
        jnp.eye(3), jnp.array([1, 3, 2]), axis=1
    )  # columns count alike: 1, 3 and 2 of each coordinate
    variables = {"params": {"layer": {"affine": {"kernel": kernel}}}}
    found, values = latent_space.closed_form(SimpleNamespace(map=None), variables)
    along = latent_space.along_directions(styles(), found[:2], jax.random.key(0), jnp.zeros(1, int))
    np.testing.assert_allclose(values, [3, 2, 1], rtol=1e-6)
    # The second coordinate counts most, then the third; a direction's sign is free.
    steps = np.abs(np.diff(along[:, :, 0], axis=1))
    # Each is a deviation of 256 normal numbers, whose own deviation is 1/√512.
    np.testing.assert_allclose(
        steps, np.broadcast_to([[[0, 1, 0]], [[0, 0, 1]]], (2, 6, 3)), atol=0.2
    )
    np.testing.assert_allclose(steps[:, :1] + 0 * steps, steps, atol=1e-5)
    np.testing.assert_allclose(along[0, 3], along[1, 3])


STYLES = dict(resolution=8, w_size=6, channel_base=32, channel_max=4, mapping_layers=1)
NETWORKS = {
    "dcgan": dict(width=2, start=2, doublings=2),
    "resnet_gan": dict(widths=(4, 2)),
    "r3gan": dict(widths=(4, 2), cardinalities=(2, 1), blocks=(1, 1), embedding_features=3),
    "stylegan2": STYLES,
    "stylegan3": dict(STYLES, num_layers=2, num_critical=1),
    "vit_gan": dict(resolution=8, patch_size=4, width=8, depth=1, num_heads=2),
}


def test_every_network_of_images_is_here():
    folder = Path(gans.__file__).parent
    generators = {
        path.stem for path in folder.glob("*.py") if "class Generator(" in path.read_text()
    }
    assert generators - {"mlp_gan"} == set(NETWORKS)  # that one makes points


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_interpolation_and_directions_of_every_network(name, tmp_path):
    """They are drawn, with a row for each direction. Untrained images may be all grey."""
    module = importlib.import_module(f"genjax.models.gans.{name}")
    shared = dict(latent_size=5, image_channels=1, num_classes=3)
    generator, key = module.Generator(**NETWORKS[name], **shared), jax.random.key(0)
    z, labels = jnp.zeros((1, 5)), jnp.array([1, 2])
    init = jax.jit(generator.init, compiler_options=QUICK)
    variables = init({"params": key, "noise": key}, z, labels[:1])
    task = SimpleNamespace(space=Pixels((8, 8, 1)), generator=generator)
    there = latent_space.spaces(generator, variables, 1.0)
    space = there[:2][-1]
    for each in there[:2]:
        latent_space._draw_walk(task, each, key, labels, tmp_path)
        with Image.open(tmp_path / f"walk_{each.name}.webp") as film:
            assert min(film.size) > 8
    report = latent_space._draw_directions(task, space, variables, key, labels, tmp_path)
    features = 6 if name.startswith("stylegan") else min(5, {"r3gan": 4}.get(name, 5))
    assert len(report["direction_variances"]) == features
    assert len(report["direction_eigenvalues"]) == (6 if name.startswith("stylegan") else 5)
    for sheet in ("directions", "principal_directions"):
        with Image.open(tmp_path / f"{sheet}.png") as picture:
            assert read_rows(picture) == ["direction 1", "direction 2"]


def test_principal_directions_of_z_follow_the_first_layer():
    """The first layer's kernel stretches z's second coordinate most, then its first."""
    generator = dcgan.Generator(width=2, start=2, doublings=1, latent_size=3, image_channels=1)
    variables = jax.jit(generator.init)(jax.random.key(0), jnp.zeros((1, 3)))
    kernel = np.zeros((3, 8), np.float32)
    kernel[[0, 1, 2], [0, 1, 2]] = 2, 5, 1
    variables["params"]["project"]["kernel"] = jnp.asarray(kernel)
    (space,) = latent_space.spaces(generator, variables, 1.0)
    arguments = generator, variables, jax.random.key(1), jnp.zeros(1, int)
    directions, variances = latent_space.principal(space, *arguments)
    np.testing.assert_allclose(np.abs(directions), np.eye(3)[[1, 0, 2]], atol=0.1)
    np.testing.assert_allclose(variances, [25, 4, 1], rtol=0.1)


def test_inversion_finds_the_least_squares_of_a_linear_generator():
    random = np.random.default_rng(0)
    matrix, images = random.standard_normal((12, 30)), random.standard_normal((2, 30))
    space = styles(lambda w, labels: w.reshape(-1, 12) @ matrix.astype(np.float32))
    inputs = space, jax.random.key(0), jnp.asarray(images, jnp.float32), jnp.zeros(2, int)
    found, distances = latent_space.inversion(*inputs, num_steps=2000)
    best = images @ np.linalg.pinv(matrix) @ matrix
    np.testing.assert_allclose(found, best, atol=2e-3)
    np.testing.assert_allclose(distances[""], np.mean((best - images) ** 2, axis=1), rtol=1e-4)
    assert np.all(distances["_start"] > distances[""]) and distances.keys() == {"", "_start"}
    _, at_once = latent_space.inversion(*inputs, num_steps=0)
    np.testing.assert_allclose(at_once[""], at_once["_start"], rtol=1e-5)


def test_images_without_labels_are_inverted(tmp_path):
    """As those of a folder of faces, on which a generator without classes is trained."""
    space = latent_space.Space(
        "z",
        lambda z, labels: z.reshape(-1, 4, 4, 1) + labels.reshape(-1, 1, 1, 1),
        lambda key, labels: jax.random.normal(key, (len(labels), 16)),
        adversarial.lerp,
    )
    task, images = SimpleNamespace(space=Pixels((4, 4, 1))), np.zeros((2, 4, 4, 1), np.uint8)
    inputs = task, [space], jax.random.key(0)
    report, labelled = (
        latent_space._draw_inversions(*inputs, held_out, num_steps=1, folder=tmp_path)
        for held_out in ({"image": images}, {"image": images, "label": np.zeros(2, np.int32)})
    )
    assert report == labelled and report["held_out_images"] == 2
    with Image.open(tmp_path / "inversion.png") as picture:
        assert read_rows(picture) == ["held out", "found in Z"]


@pytest.mark.slow
def test_inversion_by_lpips_too_comes_nearer_by_it():
    """And is farther in pixels than the least squares, of which there are no nearer."""
    random = np.random.default_rng(0)
    matrix = random.standard_normal((12, 16 * 16)).astype(np.float32)
    images = jnp.asarray(random.uniform(-1, 1, (2, 16, 16, 1)), jnp.float32)
    space = styles(lambda w, labels: (w.reshape(-1, 12) @ matrix).reshape(-1, 16, 16, 1))
    invert = jax.jit(
        functools.partial(latent_space.inversion, space, num_steps=60),
        compiler_options={
            "xla_backend_optimization_level": 3
        },  # a fifth of the time, compilation included
    )
    perceptual = latent_space.lpips_variables((16, 16, 1))
    (pixels_alone, least), (_, both) = (
        invert(jax.random.key(0), images, jnp.zeros(2, int), each) for each in (None, perceptual)
    )
    assert np.all(both["_lpips"] < jax.jit(LPIPS().apply)(perceptual, pixels_alone, images))
    assert np.all(both[""] > least[""])
    assert latent_space.lpips_variables((8, 8, 1)) is None


@pytest.mark.slow
def test_the_program(tmp_path, small_run):
    """It explores a StyleGAN2 as it starts, and refuses a model without latents."""
    config = digits_gan.get_config("stylegan2")
    for network in config.model.values():
        network.update(channel_base=64, channel_max=16, mapping_layers=1)
    run = untrained_run(tmp_path / "run", config)
    result = run_command(
        "latents",
        f"--workdir={run}",
        "--count=3",
        "--inversion_steps=5",
        "--pairs=20",
        "--truncation=0.7",
    )
    assert result.returncode == 0, result.stderr
    folder = run / "latents"
    for name in ("walk_z.gif", "walk_w.gif", "mixing.png", "directions.png", "inversion.png"):
        assert (folder / name).stat().st_size > 1000
        assert str(folder / name) in result.stderr
    with Image.open(folder / "inversion.png") as picture:
        assert read_rows(picture) == ["held out", "found in Z", "found in W", "found in W+"]
    report = json.loads((folder / "latents.json").read_text())
    for space in ("z", "w", "w_plus"):
        assert 0 < report[f"inversion_{space}"] <= report[f"inversion_{space}_start"]
    assert report["path_length_z"] > 0 and report["path_length_w"] > 0

    result = run_command("latents", f"--workdir={small_run[0]}")
    assert result.returncode == 1 and "experiments.latents needs a GAN of images" in result.stderr
