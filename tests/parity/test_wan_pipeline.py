"""Wan 2.1's system compared with diffusers', assembled from small random parts and saved there."""

import types

import diffusers
import numpy as np
import pytest
import torch
import transformers

from genjax import pipelines

from .test_pipelines import NEGATIVES, PROMPTS, TOKENS, loud, randomize
from .test_tokenizers import t5

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword"
)

SIZE, FRAMES, NUM_STEPS = (16, 48), 5, 6


def network(**options):
    fields = dict(in_channels=4, out_channels=4, text_dim=20, ffn_dim=40, num_layers=2)
    heads = dict(num_attention_heads=2, attention_head_dim=16)
    made = loud(diffusers.WanTransformer3DModel(**heads | fields | options))
    with torch.no_grad():
        for block in made.blocks:  # so that few of 512 tokens matter, and much
            for layer in (block.attn2.norm_q, block.attn2.norm_k, block.attn2.to_v):
                layer.weight.mul_(6)
            if options.get("image_dim"):
                block.attn2.add_v_proj.weight.mul_(3)
            block.attn1.to_v.weight.mul_(4)  # so that frames matter to each other
    return made


def parts(folder, autoencoder=None, **options):
    """Return the parts that all of Wan's systems have; `options` are those of the network."""
    encoder = transformers.UMT5Config(
        vocab_size=TOKENS, d_model=20, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    moments = dict(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.8, 1.2, 1.0])
    sizes = dict(base_dim=4, z_dim=4, num_res_blocks=1) | moments | (autoencoder or {})
    vae = randomize(diffusers.AutoencoderKLWan(**sizes))
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(0.3)  # so that few values are clipped
        for name, parameter in vae.named_parameters():
            if name.endswith("bias"):  # so that latents and frames depend on their input much
                parameter.zero_()
        vae.encoder.conv_out.weight.mul_(3)
    schedule = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return dict(
        tokenizer=t5(folder / "t5"),
        text_encoder=randomize(transformers.UMT5EncoderModel(encoder)),
        vae=vae,
        transformer=network(**options),
        scheduler=diffusers.UniPCMultistepScheduler(**schedule),
    )


def noise_of(size, frames, factor=8):
    """Return the same noise for both prompts, so that only the prompts differ."""
    rows, columns = (side // factor for side in size)
    return torch.randn(1, 4, 1 + (frames - 1) // 4, rows, columns).repeat(2, 1, 1, 1, 1)


def video_of(theirs, size, frames, latents, **given):
    """Return diffusers' frames, of 0 to 255."""
    theirs.set_progress_bar_config(disable=True)
    given |= dict(height=size[0], width=size[1], num_frames=frames, latents=latents)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        # Image to video needs this library, which would leave these prompts as they are.
        module = "diffusers.pipelines.wan.pipeline_wan_i2v.ftfy"
        patch.setattr(module, types.SimpleNamespace(fix_text=str), raising=False)
        made = theirs(prompt=PROMPTS, num_inference_steps=NUM_STEPS, output_type="np", **given)
    return 255 * made.frames


def assert_same(frames, expected, tolerance=2.0):
    assert frames.shape == expected.shape
    inside = (expected > 5) & (expected < 250)
    assert inside.mean() > 0.3 and expected[inside].std() > 10  # not all values are clipped
    assert np.abs(frames - expected).max() <= tolerance


@pytest.mark.parametrize(
    "options", [dict(negative_prompts=NEGATIVES, guidance_scale=5.0), dict(guidance_scale=1.0)]
)
def test_videos_agree_and_those_of_other_prompts_do_not(options, tmp_path):
    torch.manual_seed(0)
    theirs = diffusers.WanPipeline(**parts(tmp_path))
    theirs.save_pretrained(tmp_path / "saved")
    latents = noise_of(SIZE, FRAMES)
    guided = dict(guidance_scale=options["guidance_scale"])
    guided["negative_prompt"] = options.get("negative_prompts")
    expected = video_of(theirs, SIZE, FRAMES, latents, **guided)
    ours = pipelines.load(tmp_path / "saved")
    assert (ours.size, ours.frames, ours.num_steps, ours.guidance_scale) == ((480, 832), 81, 50, 5)
    given = dict(size=SIZE, frames=FRAMES, num_steps=NUM_STEPS)
    given |= dict(noise=np.moveaxis(latents.numpy(), 1, -1), **options)
    assert_same(ours(PROMPTS, **given), expected)
    # Twice the allowed difference.
    assert np.abs(ours(PROMPTS[::-1], **given) - expected).max() > 4
