"""Wan's image to video compared with diffusers', assembled from small random parts, saved there."""

import json

import diffusers
import numpy as np
import pytest
import torch
import transformers

from genjax import pipelines, pretrained

from .test_pipelines import NEGATIVES, randomize
from .test_wan_22_pipeline import bytes_of, image_of, ours_of
from .test_wan_pipeline import assert_same, network, noise_of, parts, video_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword"
)

SIZE, FRAMES, SIDE = (16, 48), 9, 12
# The noisy channels, the mask of four frames, and the given frames' latents.
CHANNELS = dict(in_channels=4 + 4 + 4)
TOKENS = 1 + (SIDE // 4) ** 2
IMAGE = CHANNELS | dict(image_dim=16, added_kv_proj_dim=32)


def image_encoder():
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2
    )
    config.image_size, config.patch_size, config.hidden_act = SIDE, 4, "gelu"
    sides = dict(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return dict(
        image_encoder=randomize(transformers.CLIPVisionModel(config)),
        image_processor=transformers.CLIPImageProcessor(**sides),
    )


def image_to_video(folder):
    """As Wan 2.1's of 14 billion parameters."""
    return diffusers.WanImageToVideoPipeline(**parts(folder, **IMAGE), **image_encoder())


def first_and_last(folder):
    """As Wan 2.1's for the first and the last frame."""
    shared = parts(folder, **IMAGE, pos_embed_seq_len=2 * TOKENS)
    return diffusers.WanImageToVideoPipeline(**shared, **image_encoder())


def experts(folder):
    """As Wan 2.2's pair of experts, without CLIP."""
    pair = dict(transformer_2=network(**CHANNELS), boundary_ratio=0.9)
    pipeline = diffusers.WanImageToVideoPipeline(**parts(folder, **CHANNELS), **pair)
    for each in (pipeline.transformer, pipeline.transformer_2):
        each.patch_embedding.weight.data[:, 4:] *= 60  # else given frames hardly move a video
    return pipeline


CASES = {
    "Wan 2.1": (image_to_video, False, dict(guidance_scale=5.0)),
    "Wan 2.1, first and last": (first_and_last, True, dict(guidance_scale=5.0)),
    "Wan 2.2": (experts, False, dict(guidance_scale=3.5)),
    "Wan 2.2, first and last": (experts, True, dict(guidance_scale=3.5)),
}


@pytest.mark.parametrize("name", CASES)
def test_videos_of_images_agree_and_those_of_other_images_do_not(name, tmp_path):
    build, between, options = CASES[name]
    torch.manual_seed(0)
    theirs = build(tmp_path)
    theirs.save_pretrained(tmp_path / "saved")
    image = image_of(SIZE)
    last = image.transpose(0).point(lambda value: 255 - value) if between else None
    latents = noise_of(SIZE, FRAMES)
    given = dict(image=image, last_image=last, negative_prompt=NEGATIVES)
    expected = video_of(theirs, SIZE, FRAMES, latents, **given, **options)
    ours = pipelines.load(tmp_path / "saved")
    given = dict(images=bytes_of(image)[0], negative_prompts=NEGATIVES) | options
    given |= dict(last_images=bytes_of(last)[0]) if between else {}
    videos = ours_of(ours, FRAMES, latents, **given)
    assert_same(videos, expected, tolerance=0.7)  # of which rounding to bytes is 0.5
    for images in ("images", "last_images")[: 1 + between]:
        others = ours_of(ours, FRAMES, latents, **given | {images: 255 - given[images]})
        assert np.abs(others - expected).max() > 1
    if name == "Wan 2.1":
        encode = ours.given_frames._encode_image
        ours.given_frames._encode_image = lambda images: -encode(images)
        assert np.abs(ours_of(ours, FRAMES, latents, **given) - expected).max() > 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image_to_video")
    torch.manual_seed(0)
    image_to_video(folder).save_pretrained(folder / "saved")
    return folder / "saved"


def test_diffusers_opens_a_pair_of_experts_that_is_saved(tmp_path):
    torch.manual_seed(0)
    theirs = experts(tmp_path)
    theirs.save_pretrained(tmp_path / "published")
    ours = pipelines.load(tmp_path / "published")
    pipelines.save(tmp_path / "ours", ours)
    again = diffusers.WanImageToVideoPipeline.from_pretrained(tmp_path / "ours")
    assert again.config.boundary_ratio == 0.9
    for name in ("transformer", "transformer_2", "vae"):
        pair = (getattr(each, name).state_dict() for each in (again, theirs))
        state, expected = pair
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_a_pipeline_of_images_that_was_built_by_hand_is_read_again(folder, tmp_path):
    ours = pipelines.load(folder)
    ours.folder = None
    names = ("text_encoder", "image_encoder")
    given = {name: pretrained.load(folder / name) for name in names}
    given |= dict(tokenizer=folder / "tokenizer")
    for name in ("scheduler/scheduler_config", "image_processor/preprocessor_config"):
        given[name.partition("/")[0]] = json.loads((folder / f"{name}.json").read_text())
    pipelines.save(tmp_path / "ours", ours, "WanImageToVideoPipeline", **given)
    again = diffusers.WanImageToVideoPipeline.from_pretrained(tmp_path / "ours")
    assert again.image_processor.size["shortest_edge"] == SIDE
    assert pipelines.load(tmp_path / "ours").network == ours.network


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "makes videos from their first frames: give images"),
        (dict(images=2, last_images=2), "takes no last frame: leave last_images out"),
        (dict(images=1), "2 prompts and 1 images: give one for each picture"),
        (dict(images=2, strength=0.5), "strength and known are for pictures"),
        (dict(images=2, guidance_scale=(4.0, 3.0)), r"guidance_scale=\(4.0, 3.0\) does not fit"),
    ],
)
def test_faults_of_given_frames_are_named(pipeline, given, message):
    images = {
        name: np.zeros((count, *SIZE, 3), np.uint8)
        for name, count in given.items()
        if "images" in name
    }
    with pytest.raises(ValueError, match=message):
        pipeline(["a cat", "a dog"], frames=5, **given | images)


@pytest.fixture(scope="module")
def pipeline(folder):
    return pipelines.load(folder)


@pytest.mark.parametrize(
    ("file", "entries", "message"),
    [
        ("model_index", dict(boundary_ratio=0.9), "boundary_ratio=0.9 and transformer_2=None"),
        ("model_index", dict(expand_timesteps=1), "expand_timesteps=1 is not supported"),
        (
            "image_processor/preprocessor_config",
            dict(size=dict(shortest_edge=14)),
            "preprocessor_config.json cannot be read: size={'shortest_edge': 14} is not",
        ),
    ],
)
def test_faults_of_a_folder_are_named(folder, file, entries, message):
    path = folder / f"{file}.json"
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | entries))
    with pytest.raises(ValueError, match=message):
        pipelines.load(folder)
    path.write_text(text)
