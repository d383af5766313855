"""Wan 2.1's system compared with diffusers', assembled from small random parts and saved there."""

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


def wan(folder):
    encoder = transformers.UMT5Config(
        vocab_size=TOKENS, d_model=20, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=20,
        ffn_dim=40,
        num_layers=2,
    )
    autoencoder = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.8, 1.2, 1.0],
    )
    schedule = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return diffusers.WanPipeline(
        tokenizer=t5(folder / "t5"),
        text_encoder=randomize(transformers.UMT5EncoderModel(encoder)),
        vae=randomize(autoencoder),
        transformer=loud(transformer),
        scheduler=diffusers.UniPCMultistepScheduler(**schedule),
    )


@pytest.mark.parametrize(
    "options", [dict(negative_prompts=NEGATIVES, guidance_scale=5.0), dict(guidance_scale=1.0)]
)
def test_videos_agree_and_those_of_other_prompts_do_not(options, tmp_path):
    torch.manual_seed(0)
    theirs = wan(tmp_path)
    with torch.no_grad():
        theirs.vae.decoder.conv_out.weight.mul_(0.3)  # so that few values are clipped
        for block in theirs.transformer.blocks:  # so that few of 512 tokens matter, and much
            for layer in (block.attn2.norm_q, block.attn2.norm_k, block.attn2.to_v):
                layer.weight.mul_(6)
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(tmp_path / "saved")
    rows, columns = (side // 8 for side in SIZE)
    latents = torch.randn(1, 4, 1 + (FRAMES - 1) // 4, rows, columns).repeat(2, 1, 1, 1, 1)
    with torch.no_grad():
        video = theirs(
            prompt=PROMPTS,
            negative_prompt=options.get("negative_prompts"),
            guidance_scale=options["guidance_scale"],
            height=SIZE[0],
            width=SIZE[1],
            num_frames=FRAMES,
            num_inference_steps=NUM_STEPS,
            latents=latents,
            output_type="np",
        ).frames
    expected = 255 * video
    ours = pipelines.load(tmp_path / "saved")
    assert (ours.size, ours.frames, ours.num_steps, ours.guidance_scale) == ((480, 832), 81, 50, 5)
    given = dict(size=SIZE, frames=FRAMES, num_steps=NUM_STEPS)
    given |= dict(noise=np.moveaxis(latents.numpy(), 1, -1), **options)
    frames = ours(PROMPTS, **given)
    assert frames.shape == expected.shape == (2, FRAMES, *SIZE, 3)
    inside = (expected > 5) & (expected < 250)
    assert inside.mean() > 0.3 and expected[inside].std() > 10  # not all values are clipped
    assert np.abs(frames - expected).max() <= 2
    # Twice the allowed difference.
    assert np.abs(ours(PROMPTS[::-1], **given) - expected).max() > 4
