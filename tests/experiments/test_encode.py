"""From images to pictures in three commands, small: an autoencoder, its latents, a flow on them."""

import json
import shutil
import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import emoji_latent_flow
from experiments.configuration.kinds import SPACE
from experiments.configuration.runs import build
from experiments.speed.programs import program_of
from genjax.data import load_dataset, to_float
from genjax.data.sets.latents import part_paths, raw_latents
from genjax.devices import make_mesh
from genjax.training import Checkpoints
from tests.experiments.launching import ROOT, run, start

pytestmark = pytest.mark.slow

AUTOENCODER = [
    f"--config={ROOT}/configs/emoji_autoencoder.py:kl",
    "--config.num_steps=6",
    "--config.batch_size=8",
    "--config.model.widths=(8, 8, 8)",
    "--config.optimizer.autoencoder.warmup=0",
    "--config.sampling.per_class=1",
    "--config.evaluation.num_samples=20",
]
FLOW = [
    "--config.num_steps=6",
    "--config.batch_size=8",
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.model.unroll=1",
    "--config.model.num_heads=2",
    "--config.optimizer.warmup=0",
    "--config.sampling.per_class=1",
    "--config.sampling.num_steps=3",
    "--config.evaluation.num_samples=50",  # a batch of VGG16's features
]


def flow_flags(folder, choice="latents"):
    return [
        f"--config={ROOT}/configs/emoji_latent_flow.py:{choice}",
        f"--config.space.run={folder}/autoencoder",
        *([f"--config.space.directory={folder}/latents"] if choice == "latents" else []),
    ]


def succeed(name, *flags):
    result = run(name, *flags)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with an autoencoder's run, its latents and a flow's run. Do not change it."""
    folder = tmp_path_factory.mktemp("latent_diffusion")
    succeed("train", *AUTOENCODER, f"--workdir={folder}/autoencoder")
    succeed("encode", *flow_flags(folder))
    succeed("train", *flow_flags(folder), *FLOW, f"--workdir={folder}/flow")
    return folder


def test_the_autoencoder_reconstructs_no_original_twice(folder, tmp_path):
    """There are a hundred originals. A smaller count is exact."""
    where = f"--workdir={folder}/autoencoder", f"--out={tmp_path}/a.npz"
    for asked, made in ((11, 11), (101, 100)):
        result = succeed("sample", *where, f"--count={asked}")
        assert result.stdout.startswith(f"{made} samples of step 6")
        images = np.load(tmp_path / "a.npz")["images"]
        assert len(np.unique(images.reshape(made, -1), axis=0)) == made


def latents_of(config):
    return SPACE.bind(config.space, "space", data=config.data)


@pytest.fixture(scope="module")
def config(folder):
    config = emoji_latent_flow.get_config("on_the_fly")
    config.space.run = f"{folder}/autoencoder"
    config.model.update(width=16, depth=1, unroll=1, num_heads=2)
    config.batch_size = 8
    return config


def test_the_files_hold_latents_of_images_and_mirrored_images(folder, config):
    summary = json.loads((folder / "latents/latents.json").read_text())
    images = load_dataset("emoji").source[:]
    count = len(images["image"])
    assert summary["splits"] == {
        "train": 2 * count,
        "test": len(load_dataset("emoji", "test").source),
    }
    assert summary["shape"] == [8, 8, 4] and summary["num_classes"] == 10
    written = np.concatenate(
        list(raw_latents(folder / "latents", "train", 2 * count, summary["shape"]))
    )
    autoencoder = latents_of(config).autoencoder
    apply = jax.jit(lambda v, x: autoencoder.network.apply(v, x, method="encode")[0])
    some = to_float(images["image"][:20])
    # in batches of another size, convolutions may be summed in another order
    for rows, x in ((slice(20), some), (slice(count, count + 20), some[:, :, ::-1])):
        np.testing.assert_allclose(
            written[rows], apply(autoencoder.variables(), x), rtol=1e-4, atol=1e-5
        )
    np.testing.assert_allclose(
        summary["mean"], written.mean((0, 1, 2)), rtol=1e-4, atol=1e-5
    )  # float32 sums
    np.testing.assert_allclose(summary["deviation"], written.std((0, 1, 2)), rtol=1e-4)
    dataset = load_dataset("latents", "train", folder / "latents")
    assert list(dataset.captions) == 2 * list(load_dataset("emoji").captions)
    read = dataset.source[:]
    np.testing.assert_allclose(read["image"].mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(read["image"].std((0, 1, 2)), 1, rtol=1e-4)
    np.testing.assert_array_equal(read["label"], np.tile(images["label"], 2))


def test_encoding_again_writes_only_what_is_missing(folder, tmp_path):
    path, other = part_paths(folder / "latents", "train", 2 * len(load_dataset("emoji").source))[:2]
    before, untouched = path.read_bytes(), other.stat().st_mtime_ns
    names = {each.name for each in path.parent.iterdir()}
    # A kill leaves a part half-written.
    path.rename(path.with_suffix(".unfinished")).write_bytes(before[: len(before) // 2])
    succeed("encode", *flow_flags(folder))
    assert path.read_bytes() == before and other.stat().st_mtime_ns == untouched
    assert {each.name for each in path.parent.iterdir()} == names


def test_two_processes_share_the_work(folder, tmp_path):
    """Each writes parts of its own, and together the files that one process writes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = [*flow_flags(folder)[:2], f"--config.space.directory={tmp_path}/latents"]
    flags += [f"--coordinator=localhost:{port}", "--num_processes=2"]
    processes = [start("encode", *flags, f"--process_id={i}") for i in range(2)]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    written = {path.name: path.read_bytes() for path in (tmp_path / "latents").iterdir()}
    assert (
        len(written) == 3 + 1 + 2 + 2
    )  # parts of training and held-out images, captions of both, two notes
    for name, content in written.items():
        assert content == (folder / "latents" / name).read_bytes(), name


def test_latents_of_two_autoencoders_do_not_mix(folder):
    result = run("encode", *flow_flags(folder), "--config.space.weights=params")
    assert result.returncode == 1 and "take another folder" in result.stderr


def test_the_flow_makes_pictures_and_says_how_far_they_are(folder):
    report = json.loads((folder / "flow/report.json").read_text())
    assert {
        "fd_vgg16",
        "fd_vgg16_train",
        "fd_vgg16_reconstruction",
        "class_accuracy",
    } <= report.keys()
    # six steps make noise of it; six steps of the autoencoder keep something of the images
    assert report["fd_vgg16_train"] < report["fd_vgg16_reconstruction"] < report["fd_vgg16"]
    with Image.open(folder / "flow/samples.png") as grid:
        assert grid.height == 10 * 66 and grid.width > 66  # decoded: 32 pixels a side, doubled
    with Image.open(folder / "flow/noise_to_data.gif") as animation:
        assert animation.n_frames == 4
    # what is frozen is in no checkpoint
    task = build(emoji_latent_flow.get_config("pixels"))
    assert not hasattr(jax.eval_shape(task.init, jax.random.key(0)), "autoencoder")
    with Checkpoints(folder / "flow/checkpoints") as checkpoints:
        assert checkpoints.latest() == 6


def test_on_the_fly_a_step_is_that_on_the_latents_and_the_encoder_stays(config):
    task = build(config)
    assert task.space.shape == (8, 8, 4) and task.space.data_shape == (32, 32, 3)
    (frozen,) = task.frozen()
    before = jax.tree.map(np.copy, frozen)
    rows = load_dataset("emoji").source[:8]
    key = jax.random.key(0)
    state = jax.jit(task.init)(key)
    flipped = jnp.where(
        jax.random.bernoulli(jax.random.fold_in(key, 2), shape=(8, 1, 1, 1)),
        rows["image"][:, :, ::-1],
        rows["image"],
    )
    latents = task.space.encode(jnp.asarray(flipped), frozen)
    update = jax.jit(task.update)
    of_images, metrics = update(state, rows, key, frozen)
    # Latents are not mirrored: a mirrored latent is not the latent of the mirrored image.
    of_latents, expected = update(state, {"image": latents, "label": rows["label"]}, key, frozen)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        of_images.params,
        of_latents.params,
    )
    jax.tree.map(np.testing.assert_array_equal, before, frozen)


def test_a_program_on_latents_has_their_shape(config, folder):
    """Also where only the autoencoder knows it."""
    config = config.copy_and_resolve_references()
    config.space.update(directory=f"{folder}/latents", shape=None)
    program = program_of("train", config, make_mesh({"data": 1}, config.batch_size))
    assert program.local[1]["image"].shape == (8, 8, 8, 4)


def test_flows_are_standardized_alike_whatever_is_evaluated_later(folder, config, tmp_path):
    workdir = shutil.copytree(folder / "autoencoder", tmp_path / "autoencoder")
    config = config.copy_and_resolve_references()
    config.space.run = str(workdir)
    before = latents_of(config).autoencoder.load()
    succeed("evaluate", f"--workdir={workdir}", "--num_samples=12")
    assert json.loads((workdir / "report.json").read_text())["num_samples"] == 12
    after = latents_of(config).autoencoder.load()
    np.testing.assert_array_equal(before["mean"], after["mean"])
    np.testing.assert_array_equal(before["deviation"], after["deviation"])


def test_nothing_is_written_among_other_files(folder, tmp_path):
    (tmp_path / "photo.png").write_bytes(b"")
    result = run("encode", *flow_flags(folder), f"--config.space.directory={tmp_path}")
    assert result.returncode == 1 and "it holds other files" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_config_errors(config, folder):
    config = config.copy_and_resolve_references()
    config.space.published = "somewhere"
    with pytest.raises(
        ValueError, match="config.space.run is .* and config.space.published 'somewhere': set one"
    ):
        build(config)
    result = run("encode", *flow_flags(folder, "on_the_fly"))
    assert result.returncode == 1 and "config.space is Latents without a directory" in result.stderr
