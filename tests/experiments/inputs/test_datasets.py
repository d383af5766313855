"""A user's own images: wrong shapes and classes are errors before training."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from configs import digits_flow, digits_gan, emoji_autoencoder
from experiments.configuration.runs import build
from experiments.inputs.conditions import Classes, Prompts, Unconditional
from experiments.inputs.datasets import Data, _with_sound, check_mirrored, training_batches
from genjax.data import Dataset, InMemory, load_dataset
from genjax.devices import make_mesh
from tests.experiments import small_sounding


def folder_of(tmp_path, sizes, classes=("",)):
    """Write twenty images for each class, of sizes in turn."""
    random = np.random.default_rng(0)
    for name in classes:
        (tmp_path / name).mkdir(exist_ok=True)
        for i in range(20):
            pixels = random.integers(0, 256, (*sizes[i % len(sizes)], 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")


def config_of(tmp_path, num_classes, config=digits_flow):
    config = config.get_config()
    config.batch_size = 8
    config.data.update(name="folder", directory=str(tmp_path), image_shape=(8, 8, 3))
    config.condition.num_classes = num_classes
    return config


def batches_of(config):
    return training_batches(config, build(config), make_mesh({"data": 1}, config.batch_size))


@pytest.mark.parametrize(
    ("classes", "num_classes", "words"),
    [
        ("abc", 2, "has 3 classes, and {}.num_classes is 2: set --{}.num_classes=3"),
        ("abc", 4, "has 3 classes, and {}.num_classes is 4: set --{}.num_classes=3"),
        (("",), 10, "has no classes, and {}.num_classes is 10: set --{}.name=Unconditional"),
    ],
)
def test_as_many_classes_as_the_data_have(tmp_path, classes, num_classes, words):
    folder_of(tmp_path, [(8, 8)], classes)
    with pytest.raises(ValueError, match=words.replace("{}", "config.condition")):
        batches_of(config_of(tmp_path, num_classes))


def test_images_without_labels_are_one_class(tmp_path):
    folder_of(tmp_path, [(8, 8)])
    config = config_of(tmp_path, num_classes=1)
    config.model.update(width=16, depth=1, num_heads=1, unroll=1)
    task, batch = build(config), batches_of(config)[0]
    assert set(batch) == {"image"}
    state = jax.jit(task.init)(jax.random.key(0))
    _, metrics = jax.jit(task.update)(state, batch, jax.random.key(0))
    _, expected = jax.jit(task.update)(
        state, batch | {"label": np.zeros(8, np.int32)}, jax.random.key(0)
    )
    assert np.isfinite(metrics["loss"]) and metrics["loss"] == expected["loss"]


@pytest.mark.parametrize(
    "condition", [dict(name="Classes", num_classes=1), dict(name="Unconditional")]
)
def test_a_gan_takes_images_without_labels(tmp_path, condition):
    folder_of(tmp_path, [(8, 8)])
    config = config_of(tmp_path, 1, digits_gan)
    config.model.generator.image_channels = 3
    config.condition = condition
    task, batch, key = build(config), batches_of(config)[0], jax.random.key(0)
    assert set(batch) == {"image"} and task.conditional == (condition["name"] == "Classes")
    _, metrics = jax.eval_shape(task.update, jax.eval_shape(task.init, key), batch, key)
    assert "loss/generator" in metrics


def test_one_class_is_the_class_of_every_label():
    """Whatever the data's labels are: the label 1 would be the null class, and 2 no row at all."""
    labels = np.array([0, 1, 7])
    np.testing.assert_array_equal(Classes(1).of_labels(labels, None), 0)
    np.testing.assert_array_equal(Classes(8).of_labels(labels, None), labels)


def test_images_of_another_shape(tmp_path):
    folder_of(tmp_path, [(8, 8)], "ab")
    config = config_of(tmp_path, num_classes=2)
    config.data.image_shape = (8, 8, 1)
    message = (
        r"shape \(8, 8, 3\), the network takes \(8, 8, 1\): set --config.data.image_shape=8,8,3,"
    )
    with pytest.raises(ValueError, match=message):
        batches_of(config)


def load_floats(split, data_dir):
    return Dataset("mine", split, InMemory({"image": np.zeros((20, 8, 8, 3))}))


def test_images_of_floats_are_refused(tmp_path):
    """Their range is unknown: as they are, images in [0, 1] would train in the wrong range."""
    config = config_of(tmp_path, num_classes=1)
    config.data.name = f"{__name__}.load_floats"
    with pytest.raises(
        ValueError, match=r"the image of mine \(train\) is float64, .* be uint8: of"
    ):
        batches_of(config)


def load_silent(split):
    return Dataset("silent", split, InMemory({"video": np.zeros((20, 4, 8, 8, 1), np.uint8)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(sound_shape=(16, 1)),
            r"the audio of squares \(train\) has shape \(32, 1\), the network takes \(16, 1\): set "
            "--config.data.sound_shape=32,1,",
        ),
        (
            dict(name=f"{__name__}.load_silent"),
            r"examples of silent \(train\) have video and no audio, which config.space reads: take",
        ),
    ],
    ids=["shape", "silent"],
)
def test_sounds_that_clips_do_not_have(tmp_path, changes, message):
    config = small_sounding.config(str(tmp_path))
    config.data.update(changes)
    with pytest.raises(ValueError, match=message):
        batches_of(config)


def test_images_that_vary_in_size_are_resized_when_asked_to(tmp_path):
    folder_of(tmp_path, [(8, 8), (20, 12), (12, 20)], "ab")
    config = config_of(tmp_path, num_classes=2)
    with pytest.raises(
        ValueError, match="folder .train. vary in size.*set --config.data.resize=True"
    ):
        batches_of(config)
    config.data.resize = True
    assert batches_of(config)[0]["image"].shape == (8, 8, 8, 3)
    held_out = Data.from_config(config).held_out()  # what samples are compared with
    assert held_out.source[:]["image"].shape[1:] == (8, 8, 3)
    config.data.image_shape = (8, 4, 3)
    assert batches_of(config)[0]["image"].shape == (8, 8, 4, 3)


def test_clips_of_another_shape_are_told_what_clips_can_do(tmp_path):
    """Only images are resized as they are read."""
    config = small_sounding.config(str(tmp_path))
    config.data.image_shape = (4, 16, 8, 1)
    message = (
        r"clips of squares \(train\) have shape \(4, 8, 8, 1\), .*: set "
        "--config.data.image_shape=4,8,8,1, and the network for it; or set config.data.options, "
    )
    with pytest.raises(ValueError, match=message) as caught:
        batches_of(config)
    assert "resize" not in str(caught.value)
    config.data.resize = True
    with pytest.raises(
        ValueError, match="resize is for images, and config.data.feature is 'video'"
    ):
        batches_of(config)


def test_an_autoencoder_takes_images_that_vary_in_size_when_asked_to(tmp_path):
    folder_of(tmp_path, [(8, 8), (20, 12), (12, 20)])
    config = emoji_autoencoder.get_config("kl")
    config.batch_size = 4
    config.data.update(name="folder", directory=str(tmp_path), image_shape=(8, 8, 3))
    with pytest.raises(ValueError, match="vary in size.*set --config.data.resize=True"):
        batches_of(config)
    config.data.resize = True
    assert batches_of(config)[0]["image"].shape == (4, 8, 8, 3)
    assert Data.from_config(config).shown.shape[1:] == (8, 8, 3)  # what is reconstructed


def test_latents_of_clips_keep_the_sound_and_the_actions_of_their_clips():
    """Encoding writes mirror images after all originals."""
    clips = {"video": np.zeros((3, 5, 4, 4, 1), np.uint8), "action": np.arange(15).reshape(3, 5)}
    clips = Dataset("clips", "train", InMemory(clips | {"audio": np.arange(3, dtype=np.int16)}))
    latents = lambda count: Dataset(
        "latents", "train", InMemory({"image": np.arange(count, dtype=np.float32)[:, None]})
    )
    both = _with_sound(latents(6), clips, flip=True)
    np.testing.assert_array_equal(both.source[:]["video"][:, 0], np.arange(6))
    np.testing.assert_array_equal(both.source[:]["audio"], [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(both.source[4]["action"], np.arange(5, 10))
    with pytest.raises(ValueError, match="has 4 latents of train, and config.data makes 3"):
        _with_sound(latents(4), clips, flip=False)


def test_clips_whose_captions_name_a_side_are_not_mirrored():
    """A mirrored digit that moves left would have the caption that it moves right."""
    clips, emoji = load_dataset("moving_digits", "test[:50]"), load_dataset("emoji", "test")
    prompts = Prompts("minilm", 20, 384, 384, 0.5, ())
    with pytest.raises(ValueError, match="captions of moving_digits .*flip=False"):
        check_mirrored(clips, prompts, flip=True)
    check_mirrored(clips, prompts, flip=False)
    check_mirrored(clips, Unconditional(), flip=True)
    check_mirrored(emoji, prompts, flip=True)  # few are arrows or hands
    plain = [("bright leftovers",)] * 50
    check_mirrored(dataclasses.replace(clips, captions=plain), prompts, flip=True)


def pictures_by_another_name(split):
    pictures, label = np.zeros((20, 8, 8, 1), np.uint8), np.zeros(20, np.int32)
    return Dataset("mine", split, InMemory({"pictures": pictures, "label": label}), num_classes=1)


def test_a_set_without_images_is_answered_with_what_it_has():
    config = digits_flow.get_config()
    config.batch_size = 8
    config.data.name = f"{__name__}.pictures_by_another_name"
    with pytest.raises(ValueError, match="mine .train. has no 'image'.* have pictures, label"):
        batches_of(config)


def pictures_without_channels(split):
    image, label = np.zeros((20, 8, 8), np.uint8), np.zeros(20, np.int32)
    return Dataset("mine", split, InMemory({"image": image, "label": label}), num_classes=1)


def test_images_have_an_axis_of_channels():
    config = digits_flow.get_config()
    config.batch_size = 8
    config.data.name = f"{__name__}.pictures_without_channels"
    with pytest.raises(ValueError, match=r"have shape \(8, 8\), .* one channel, as images"):
        batches_of(config)
