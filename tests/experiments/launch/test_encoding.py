"""The folder of a config's latents records their origin."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import emoji_latent_flow, moving_digits_video, sounding_digits, text_to_audio
from experiments.configuration.runs import build
from experiments.inputs import autoencoders
from experiments.inputs.conditions import Prompts, Unconditional
from experiments.inputs.datasets import training_batches
from experiments.launch import encoding
from experiments.launch.encoding import EncodedData, Examples, origin_of, write
from genjax.data import Dataset, InMemory, sound_to_float
from genjax.data.sets import latents
from genjax.data.sets.latents import (
    ORIGIN,
    PARAMETERS,
    check_origin,
    part_paths,
    parts_of,
    write_latents,
    write_origin,
    write_summary,
)
from genjax.devices import make_mesh
from genjax.pretrained.variables import parameters_digest
from genjax.training.progress import ProgressBar
from tests.experiments import small_sounding, small_video
from tests.experiments.small_digits import small_config


def test_mirror_images_come_after_the_images_with_their_labels():
    images = np.arange(2 * 2 * 3).reshape(2, 2, 3, 1).astype(np.uint8)
    source = InMemory({"image": images, "label": np.array([4, 7], np.int32)})
    examples = Examples(Dataset("two", "train", source), True, "image")
    pixels, labels = zip(*(examples[row] for row in range(len(examples))), strict=True)
    assert list(labels) == [4, 7, 4, 7]
    np.testing.assert_array_equal(pixels, [*images, *(np.fliplr(image) for image in images)])


def test_nested_fields_of_data_are_part_of_the_origin(tmp_path):
    config = text_to_audio.get_config()
    write_origin(tmp_path, origin_of(config))
    assert json.loads((tmp_path / ORIGIN).read_text())["data"]["options"]["sample_rate"] == 44_100
    check_origin(tmp_path, origin_of(config))
    config.data.options.channels = 1
    with pytest.raises(ValueError, match="take another folder"):
        check_origin(tmp_path, origin_of(config))


def test_an_origin_that_another_process_is_writing_is_no_other_file(tmp_path):
    (tmp_path / "origin.1").write_text("{")
    write_origin(tmp_path, {"data": "digits"})
    check_origin(tmp_path, {"data": "digits"})
    (tmp_path / ORIGIN).unlink()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="it holds other files"):
        write_origin(tmp_path, {"data": "digits"})


def test_numbers_that_cannot_be_meant_are_refused():
    config = emoji_latent_flow.get_config()
    config.space.batch_size = 0
    with pytest.raises(SystemExit, match="config.space.batch_size is 0; it must be at least 1"):
        write(config)


def test_origins_without_nested_fields_are_as_before(tmp_path):
    """Folders of latents outlive the version of genjax that wrote them."""
    config = emoji_latent_flow.get_config()
    before = {
        "space": {"run": "runs/emoji_autoencoder", "weights": "ema", "published": None},
        "data": {name: each for name, each in config.data.items() if name != "options"},
    }
    (tmp_path / ORIGIN).write_text(json.dumps(before, indent=2))
    check_origin(tmp_path, origin_of(config))


def test_latents_of_fewer_or_more_images_do_not_mix(tmp_path, monkeypatch):
    """Latents would have the labels and captions of other images."""
    small_video.use_block_means(monkeypatch)
    config = small_video.narrow(moving_digits_video.get_config(), f"{tmp_path}/latents")
    write_origin(tmp_path / "latents", EncodedData(config).origin)

    def fewer(split, load=small_video.load):
        dataset = load(split)
        source = InMemory({"video": dataset.source[:5]["video"]})
        return replace(dataset, source=source, captions=dataset.captions[:5])

    monkeypatch.setattr(small_video, "load", fewer)
    with pytest.raises(
        ValueError, match="'train': 24, .* not of .*'train': 5, .* take another fol"
    ):
        EncodedData(config)


def test_one_split_for_training_and_measures_is_mirrored(tmp_path, monkeypatch):
    small_video.use_block_means(monkeypatch)
    monkeypatch.setattr(encoding, "check_mirrored", lambda *_: None)  # of captions
    config = small_video.narrow(moving_digits_video.get_config(), f"{tmp_path}/latents")
    config.data.update(flip=True, held_out_split=config.data.train_split)
    assert EncodedData(config).counts == {"train": 2 * 24}


def test_the_progress_counts_the_parts_of_this_process(tmp_path, monkeypatch):
    """Parts that exist count as done from the start, so the rate is that of new ones."""
    small_video.use_block_means(monkeypatch)
    monkeypatch.setattr(latents, "PART", 4)
    config = small_video.narrow(moving_digits_video.get_config(), f"{tmp_path}/latents")
    shown = []

    class Progress(ProgressBar):
        def __init__(self, label, start, total, unit):
            shown.append((start, total))
            super().__init__(label, start, total, unit)

        def update(self, done, losses=None):
            shown.append(done)

    monkeypatch.setattr(encoding, "ProgressBar", Progress)
    write_origin(tmp_path / "latents", EncodedData(config).origin)
    for process in (1, 0):  # of 24 and 8 clips in parts of 4
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        write(config)
    assert shown == [(0, 16), 4, 8, 12, 16] * 2
    first, last = (part_paths(tmp_path / "latents", "train", 24)[i] for i in (0, 5))
    first.unlink()
    last.unlink()
    shown.clear()
    write(config)
    assert shown == [(12, 16), 16]


def test_latents_of_other_parameters_are_not_trained_on(tmp_path):
    """The autoencoder that decodes samples would not be the one that encoded the data."""
    zeros, variables = np.zeros((4, 2, 2, 3), np.float32), {"a": np.ones(1)}
    write_origin(tmp_path, {PARAMETERS: parameters_digest(variables)})
    list(write_latents(parts_of(tmp_path, "train", 4), lambda rows: (zeros, np.zeros(4, np.int32))))
    facts = dict(splits={"train": 4}, num_classes=None, class_names=[])
    write_summary(tmp_path, facts | dict(shape=(2, 2, 3), mean=[0.0] * 3, deviation=[1.0] * 3))
    shapes = {"image": jax.ShapeDtypeStruct((2, 2, 3), np.float32)}
    space = dict(directory=tmp_path, made_by=lambda: variables, feature="image")
    space = SimpleNamespace(**space, abstract_batch=lambda: shapes)
    task, config = SimpleNamespace(space=space, condition=Unconditional()), small_config()
    config.batch_size = 4
    batches = training_batches(config, task, make_mesh({"data": 1}, 4, jax.devices()[:1]))
    assert batches[0]["image"].shape == (4, 2, 2, 3)
    space.made_by = lambda: {"a": np.zeros(1)}
    with pytest.raises(ValueError, match="was made by other parameters than this config's autoe"):
        training_batches(config, task, None)


def test_latents_of_an_autoencoder_that_was_trained_anew_do_not_mix(tmp_path, monkeypatch):
    """It has the name of the old one. Folders of earlier versions do not say the parameters."""
    config = small_video.narrow(moving_digits_video.get_config(), f"{tmp_path}/latents")

    def encoded(parameter):
        variables = {"params": {"unused": np.float32([parameter])}}
        published = lambda folder: (small_video.BlockMeans(), variables)
        monkeypatch.setattr(autoencoders, "_published", published)
        return EncodedData(config)

    write_origin(tmp_path / "latents", encoded(1.0).origin)
    assert encoded(1.0).counts == {"train": 24, "test": 8}
    with pytest.raises(ValueError, match="take another folder, or empty it"):
        encoded(2.0)
    path = tmp_path / "latents" / ORIGIN
    before = json.loads(path.read_text())
    del before[PARAMETERS]
    path.write_text(json.dumps(before))
    assert encoded(2.0).shape == (5, 4, 4, 4)


def load_sounding(split: str):
    """Return the clips of `small_video`, each with a sound of its own."""
    dataset = small_video.load(split)
    video = dataset.source[:]["video"]
    sounds = np.arange(1, 1 + len(video), dtype=np.int16)[:, None, None].repeat(32, 1)
    return replace(dataset, source=InMemory({"video": video, "audio": sounds}))


def test_clips_with_sound_are_trained_on_as_latents_with_their_sound(tmp_path, monkeypatch):
    """The batches hold what encoding within the step would give, and each clip keeps its sound."""
    small_video.use_block_means(monkeypatch)
    monkeypatch.setattr(Prompts, "_encode", lambda self, prompts: small_sounding.words(prompts))

    def built(directory: str | None):
        config = sounding_digits.get_config()
        config.data.update(name=f"{__name__}.load_sounding", image_shape=(17, 16, 16, 1))
        config.data.sound_shape = (32, 1)
        config.space.video = dict(space="Latents", published="block_means", directory=directory)
        config.space.sound.update(n_fft=16, hop=8, num_mels=4)
        config.condition.update(
            directory=f"{tmp_path}/prompts", encoder="words", prompts=(), rows=4
        )
        config.condition.update(features=small_sounding.WIDTH, pooled_features=small_sounding.WIDTH)
        config.model.update(video_width=16, sound_width=12, depth=1, num_heads=2, unroll=1)
        config.model.update(video_patch=(1, 2, 2), sound_patch=1)
        config.batch_size = 4
        if directory:
            write(config)
        task = build(config)
        batch = training_batches(config, task, make_mesh({"data": 1}, 4, jax.devices()[:1]))[1]
        return batch, task._examples(batch, jax.random.key(0), {"video": task.space.video.frozen()})

    stored, of_folder = built(f"{tmp_path}/latents")
    clips, within_step = built(None)
    assert stored["video"].shape == (4, 5, 4, 4, 4) and clips["video"].shape == (4, 17, 16, 16, 1)
    np.testing.assert_array_equal(stored["index"], clips["index"])
    np.testing.assert_array_equal(of_folder["sound"], within_step["sound"])
    assert len(np.unique(stored["audio"])) == 4 and sound_to_float(stored["audio"]).max() < 1e-2
    # The folder's latents have the data's moments, and the published autoencoder its own.
    normal = lambda x: (x - x.mean()) / x.std()
    channels = zip(of_folder["video"].T, within_step["video"].T, strict=True)
    for ours, theirs in channels:
        np.testing.assert_allclose(normal(ours), normal(theirs), rtol=1e-4)


def test_clips_that_move_left_or_right_are_neither_encoded_nor_trained_on_mirrored(
    tmp_path, monkeypatch
):
    small_video.use_block_means(monkeypatch)
    config = small_video.narrow(moving_digits_video.get_config(), f"{tmp_path}/latents")
    config.data.flip, message = True, "12 of 24 captions of squares .train. name left or right"
    with pytest.raises(ValueError, match=message):
        EncodedData(config)
    config.space.directory = None
    with pytest.raises(ValueError, match=message):
        training_batches(config, build(config), make_mesh({"data": 1}, 4, jax.devices()[:1]))
