"""How many tokens a network sees of a clip or an image, as published."""

import math

import pytest

from genjax.models.autoencoders.autoencoder_kl import AutoencoderKL_FLUX
from genjax.models.autoencoders.autoencoder_ltx import AutoencoderLTX
from genjax.models.autoencoders.autoencoder_wan import AutoencoderWan, autoencoder_wan_22
from genjax.models.transformers.flux import flux_dev
from genjax.models.transformers.ltx2 import LATENTS_PER_SECOND
from genjax.models.transformers.wan import wan_5b, wan_14b

WAN, WAN_22, LTX = (AutoencoderWan(), wan_14b()), (autoencoder_wan_22(), wan_5b()), AutoencoderLTX()


@pytest.mark.parametrize(
    ("autoencoder", "patch", "frames", "sides", "tokens"),
    [
        (WAN[0], WAN[1].patch_size, 81, (480, 832), 32_760),
        (WAN[0], WAN[1].patch_size, 81, (720, 1280), 75_600),
        (WAN_22[0], WAN_22[1].patch_size, 121, (704, 1280), 27_280),
        (LTX, (1, 1, 1), 121, (512, 768), 6_144),
        (LTX, (1, 1, 1), 121, (704, 1216), 13_376),
    ],
    ids=["Wan 480p", "Wan 720p", "Wan 2.2 TI2V-5B", "LTX 512p", "LTX 704p"],
)
def test_clips_have_the_published_number_of_tokens(autoencoder, patch, frames, sides, tokens):
    latents = [1 + (frames - 1) // autoencoder.temporal_factor]
    latents += [side // autoencoder.factor for side in sides]
    assert math.prod(n // size for n, size in zip(latents, patch, strict=True)) == tokens


@pytest.mark.parametrize(("side", "tokens"), [(512, 1024), (1024, 4096)])
def test_flux_sees_the_published_number_of_tokens(side, tokens):
    assert (side // AutoencoderKL_FLUX().factor // flux_dev().patch_size) ** 2 == tokens


def test_five_seconds_of_sound_are_126_latents():
    """LTX-2: 121 frames at 24 a second, and 25 latents a second."""
    assert LATENTS_PER_SECOND == 25
    assert round(121 / 24 * LATENTS_PER_SECOND) == 126
