"""Wan 2.2's systems compared with diffusers', assembled from small random parts and saved there."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from genjax import pipelines

from .test_pipelines import NEGATIVES, PROMPTS
from .test_wan_pipeline import NUM_STEPS, assert_same, network, noise_of, parts, video_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword"
)

# As of Wan 2.2's 5B: patches of pixels, levels with shortcuts, and a wider decoder.
PATCHED = dict(is_residual=True, patch_size=2, in_channels=12, out_channels=12) | dict(
    decoder_base_dim=6, scale_factor_spatial=16
)


def image_of(size):
    """Return a smooth random image."""
    coarse = np.random.default_rng(3).integers(0, 256, (3, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


def bytes_of(*images):
    """Return each image once for every prompt."""
    return [np.repeat(np.asarray(image)[None], len(PROMPTS), 0) for image in images]


def ours_of(pipeline, frames, latents, **given):
    noise = np.moveaxis(latents.numpy(), 1, -1)
    return pipeline(PROMPTS, frames=frames, num_steps=NUM_STEPS, noise=noise, **given)


@pytest.fixture(scope="module")
def five_billion(tmp_path_factory):
    """Return diffusers' two pipelines of the same parts, and ours."""
    folder = tmp_path_factory.mktemp("5b")
    torch.manual_seed(0)
    shared = parts(folder, PATCHED)
    # Loud, so that a video tells which time its given frame has.
    shared["transformer"].condition_embedder.time_proj.weight.data *= 10
    theirs = diffusers.WanPipeline(**shared, expand_timesteps=True)
    theirs.save_pretrained(folder / "saved")
    from_image = diffusers.WanImageToVideoPipeline(**shared, expand_timesteps=True)
    return theirs, from_image, pipelines.load(folder / "saved")


SIZE, FRAMES = (32, 96), 9


def test_the_five_billions_videos_of_prompts_agree(five_billion):
    theirs, _, ours = five_billion
    assert (ours.size, ours.frames, ours.num_steps) == ((704, 1280), 121, 50)
    latents = noise_of(SIZE, FRAMES, factor=16)
    guided = dict(guidance_scale=5.0, negative_prompt=NEGATIVES)
    expected = video_of(theirs, SIZE, FRAMES, latents, **guided)
    given = dict(size=SIZE, guidance_scale=5.0, negative_prompts=NEGATIVES)
    assert_same(ours_of(ours, FRAMES, latents, **given), expected)


@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
def test_the_five_billions_videos_of_an_image_agree(five_billion, guidance_scale):
    _, theirs, ours = five_billion
    latents, image = noise_of(SIZE, FRAMES, factor=16), image_of(SIZE)
    expected = video_of(theirs, SIZE, FRAMES, latents, guidance_scale=guidance_scale, image=image)
    (images,) = bytes_of(image)
    given = dict(guidance_scale=guidance_scale)
    videos = ours_of(ours, FRAMES, latents, images=images, **given)
    assert_same(videos, expected)
    others = ours_of(ours, FRAMES, latents, images=255 - images, **given)
    assert np.abs(others - expected)[:, 1:].max() > 4


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """Return diffusers' pipeline of two networks, and ours; four of six steps are the second's."""
    folder = tmp_path_factory.mktemp("experts")
    torch.manual_seed(0)
    theirs = diffusers.WanPipeline(**parts(folder), transformer_2=network(), boundary_ratio=0.875)
    theirs.save_pretrained(folder / "saved")
    return theirs, pipelines.load(folder / "saved")


@pytest.mark.parametrize("scales", [(4.0, 3.0), (3.0, 3.0), (1.0, 1.0)])
def test_videos_of_experts_agree(experts, scales):
    theirs, ours = experts
    assert (ours.size, ours.num_steps, ours.guidance_scale) == ((720, 1280), 40, (4.0, 3.0))
    size, frames = (16, 48), 5
    latents = noise_of(size, frames)
    guided = dict(guidance_scale=scales[0], guidance_scale_2=scales[1])
    expected = video_of(theirs, size, frames, latents, **guided)
    scale = scales if scales[0] != scales[1] else scales[0]
    assert_same(ours_of(ours, frames, latents, size=size, guidance_scale=scale), expected)
    if scales[0] != scales[1]:
        other = ours_of(ours, frames, latents, size=size, guidance_scale=scales[::-1])
        assert np.abs(other - expected).max() > 4
