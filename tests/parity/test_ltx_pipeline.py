"""LTX-Video's system compared with diffusers', assembled from small random parts."""

import diffusers
import jax
import numpy as np
import pytest
import torch
from diffusers.pipelines.ltx import pipeline_ltx

from genjax import pipelines
from genjax.pipelines.generation import DECODING

from .test_pipelines import NEGATIVES, PROMPTS, loud, randomize, t5_encoder
from .test_tokenizers import t5
from .test_wan_pipeline import NUM_STEPS, assert_same

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword"
)

SIZE, FRAMES = (64, 96), 17
SCHEDULE = dict(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05) | dict(
    base_image_seq_len=1024, max_image_seq_len=4096, shift_terminal=0.1
)
# As version 0.9.0, and with a decoder that takes a time and sees no later frame.
DECODERS = {
    "0.9.0": {},
    "with times": dict(timestep_conditioning=True, decoder_causal=True)
    | dict(upsample_residual=[True] * 3, upsample_factor=[2] * 3)
    | dict(decoder_block_out_channels=[8, 16, 32]),
}


def ltx(folder, decoder):
    sizes = dict(
        latent_channels=4,
        block_out_channels=[4, 4, 4],
        down_block_types=["LTXVideoDownBlock3D"] * 3,
        spatio_temporal_scaling=[True] * 3,
        layers_per_block=[1] * 4,
        downsample_type=["conv"] * 3,
        decoder_block_out_channels=[4, 8, 8],
        decoder_spatio_temporal_scaling=[True] * 3,
        decoder_layers_per_block=[1] * 4,
        decoder_inject_noise=[False] * 4,
        upsample_residual=[False] * 3,
        upsample_factor=[1] * 3,
    )
    autoencoder = diffusers.AutoencoderKLLTXVideo(**sizes | decoder)
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=2,
        caption_channels=20,
    )
    randomize(autoencoder)
    with torch.no_grad():
        autoencoder.decoder.conv_out.conv.weight.mul_(0.5)  # so that few values are clipped
        for name, parameter in autoencoder.named_parameters():
            if name.endswith("conv.bias"):  # so that frames depend on latents much
                parameter.zero_()
        autoencoder.latents_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
        autoencoder.latents_std.copy_(torch.tensor([1.5, 0.8, 1.2, 1.0]))
    return diffusers.LTXPipeline(
        tokenizer=t5(folder / "t5"),
        text_encoder=t5_encoder(20),
        vae=autoencoder,
        transformer=loud(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULE),
    )


@pytest.mark.parametrize(
    ("decoder", "options"),
    [
        ("0.9.0", dict(negative_prompts=NEGATIVES, guidance_scale=3.0)),
        ("with times", dict(guidance_scale=1.0)),
    ],
)
def test_videos_agree_and_those_of_other_prompts_do_not(decoder, options, tmp_path):
    torch.manual_seed(0)
    theirs = ltx(tmp_path, DECODERS[decoder])
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(tmp_path / "saved")
    rows, columns = (side // 32 for side in SIZE)
    latents = torch.randn(1, 4, 1 + (FRAMES - 1) // 8, rows, columns).repeat(2, 1, 1, 1, 1)
    with torch.no_grad():
        made = theirs(
            prompt=PROMPTS,
            negative_prompt=options.get("negative_prompts"),
            guidance_scale=options["guidance_scale"],
            height=SIZE[0],
            width=SIZE[1],
            num_frames=FRAMES,
            num_inference_steps=NUM_STEPS,
            latents=theirs._pack_latents(latents),
            output_type="np",
        )
    expected = 255 * made.frames
    ours = pipelines.load(tmp_path / "saved")
    assert (ours.size, ours.frames, ours.num_steps, ours.guidance_scale) == ((512, 704), 161, 50, 3)
    given = dict(size=SIZE, frames=FRAMES, num_steps=NUM_STEPS)
    given |= dict(noise=np.moveaxis(latents.numpy(), 1, -1), **options)
    assert_same(ours(PROMPTS, **given), expected)
    # Twice the allowed difference.
    assert np.abs(ours(PROMPTS[::-1], **given) - expected).max() > 4
    if decoder == "0.9.0":
        pipelines.save(tmp_path / "again", ours)
        again = diffusers.LTXPipeline.from_pretrained(tmp_path / "again")
        for part in ("vae", "transformer"):
            state, saved = (getattr(each, part).state_dict() for each in (theirs, again))
            assert state.keys() == saved.keys()
            assert all(torch.equal(state[name], saved[name]) for name in state)


def test_a_decoder_with_times_decodes_noised_latents(tmp_path, monkeypatch):
    """Noise of decoding is that of a sample's seed, in whatever batch."""
    torch.manual_seed(0)
    theirs = ltx(tmp_path, DECODERS["with times"])
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(tmp_path / "saved")
    draw = lambda key: jax.random.normal(jax.random.fold_in(key, DECODING), (2, 2, 3, 4))
    drawn = np.stack([np.asarray(draw(jax.random.key(seed))) for seed in (3, 4)])
    drawn = torch.from_numpy(np.moveaxis(drawn, -1, 1).copy())
    monkeypatch.setattr(pipeline_ltx, "randn_tensor", lambda *shape, **options: drawn)
    latents = torch.randn(2, 4, 2, 2, 3)
    given = dict(guidance_scale=1.0, num_inference_steps=2, latents=theirs._pack_latents(latents))
    given |= dict(height=SIZE[0], width=SIZE[1], num_frames=9, output_type="np")
    with torch.no_grad():
        make = lambda **level: 255 * theirs(prompt=PROMPTS, **given, **level).frames
        noised = make(decode_timestep=0.3, decode_noise_scale=0.6)
        by_time = make(decode_timestep=0.3)
    ours = pipelines.load(tmp_path / "saved")
    given = dict(size=SIZE, frames=9, num_steps=2, guidance_scale=1.0)
    noise = np.moveaxis(latents.numpy(), 1, -1)
    both = dict(seeds=[3, 4], noise=noise)
    assert_same(ours(PROMPTS, decode_time=0.3, decode_noise=0.6, **both, **given), noised)
    assert_same(ours(PROMPTS, decode_time=0.3, **both, **given), by_time)
    second = dict(seeds=[4], noise=noise[1:])
    assert_same(ours(PROMPTS[1:], decode_time=0.3, **second, **given), by_time[1:])
    assert np.abs(noised - by_time).max() > 20
    assert np.abs(ours(PROMPTS, **both, **given) - by_time).max() > 20
    with pytest.raises(ValueError, match="decode_time=1.5 and decode_noise=1.5; expected 0 to 1"):
        ours(PROMPTS, decode_time=1.5, **given)
