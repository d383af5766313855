"""Whole systems against diffusers', assembled from small random parts and saved there: same noise, steps and pictures."""

import functools

import diffusers
import numpy as np
import pytest
import torch
import transformers

from genjax import pipelines

from .test_tokenizers import clip, t5

# Diffusers makes NumPy arrays of tensors of a PyTorch older than NumPy's copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

PROMPTS = ["a photo of a cat", "Red apples on a table"]
NEGATIVES = ["the cats", ""]
TOKENS = 700  # more than the tokenizers have


def randomize(model, scale=1.0):
    """All parameters random, so that none is without effect: matrices of about unit gain."""
    with torch.no_grad():
        for parameter in model.parameters():
            deviation = 0.3 if parameter.ndim == 1 else scale * np.prod(parameter.shape[1:]) ** -0.5
            offset = 0.5 if parameter.ndim == 1 else 0.0
            parameter.copy_(offset + deviation * torch.randn_like(parameter))
    return model.eval()


def clip_encoder(width, projection=None):
    fields = dict(
        vocab_size=TOKENS,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=2,
    )
    if projection is None:
        return transformers.CLIPTextModel(transformers.CLIPTextConfig(**fields))
    config = transformers.CLIPTextConfig(projection_dim=projection, **fields)
    return randomize(transformers.CLIPTextModelWithProjection(config))


def t5_encoder(width):
    config = transformers.T5Config(
        vocab_size=TOKENS,
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return randomize(transformers.T5EncoderModel(config))


def autoencoder(channels, **fields):
    return randomize(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            norm_num_groups=4,
            latent_channels=channels,
            **fields,
        )
    )


def stable_diffusion_3(folder, with_t5=True):
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=40,
        caption_projection_dim=16,
        pooled_projection_dim=20,
        out_channels=4,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=randomize(transformer, 0.5),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(
            4, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=clip_encoder(16, 8),
        tokenizer=clip(folder / "clip")[0],
        text_encoder_2=clip_encoder(16, 12),
        tokenizer_2=clip(folder / "clip")[0],
        text_encoder_3=t5_encoder(40) if with_t5 else None,
        tokenizer_3=t5(folder / "t5") if with_t5 else None,
    )


def flux(folder, dev):
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        guidance_embeds=dev,
        axes_dims_rope=(4, 4, 8),
    )
    schedule = dict(shift=3.0, use_dynamic_shifting=True) if dev else dict(shift=1.0)
    return diffusers.FluxPipeline(
        transformer=randomize(transformer, 0.5),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**schedule),
        vae=autoencoder(
            4, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=randomize(clip_encoder(16)),
        tokenizer=clip(folder / "clip")[0],
        text_encoder_2=t5_encoder(24),
        tokenizer_2=t5(folder / "t5"),
    )


def pixart(folder, sample_size=8):
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=24,
        sample_size=sample_size,
        caption_channels=20,
        use_additional_conditions=sample_size == 128,
    )
    return diffusers.PixArtAlphaPipeline(
        tokenizer=t5(folder / "t5"),
        text_encoder=t5_encoder(20),
        vae=autoencoder(4),
        transformer=randomize(transformer, 0.5),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def dit(folder):
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=1000,
    )
    randomize(transformer, 0.5)
    first, second = (block.norm1.emb for block in transformer.transformer_blocks)
    second.load_state_dict(first.state_dict())  # copies, as published
    return diffusers.DiTPipeline(
        transformer=transformer,
        vae=autoencoder(4),
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
        id2label={0: "cat"},
    )


def pack(noise):
    """As FLUX packs 2×2 latents: channel, row, column."""
    batch, channels, rows, columns = noise.shape
    noise = noise.reshape(batch, channels, rows // 2, 2, columns // 2, 2)
    return noise.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns // 4, 4 * channels)


CASES = {
    "Stable Diffusion 3": (stable_diffusion_3, dict(negative_prompts=NEGATIVES, guidance_scale=5.0)),
    "Stable Diffusion 3 without T5": (
        functools.partial(stable_diffusion_3, with_t5=False),
        dict(guidance_scale=3.0),
    ),
    "Stable Diffusion 3 unguided": (stable_diffusion_3, dict(guidance_scale=1.0)),
    "FLUX.1 dev": (functools.partial(flux, dev=True), dict(guidance_scale=3.5)),
    "FLUX.1 dev, guided twice": (
        functools.partial(flux, dev=True),
        dict(guidance_scale=2.0, negative_prompts=NEGATIVES, negative_scale=2.5),
    ),
    "FLUX.1 schnell": (functools.partial(flux, dev=False), dict()),
    "PixArt-alpha": (pixart, dict(negative_prompts=NEGATIVES, guidance_scale=4.5)),
    "PixArt-alpha, told the size": (functools.partial(pixart, sample_size=128), dict(guidance_scale=2.0)),
    "DiT": (dit, dict(guidance_scale=4.0)),
    "DiT unguided": (dit, dict(guidance_scale=1.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_pictures_agree(name, tmp_path):
    build, options = CASES[name]
    torch.manual_seed(0)
    theirs = build(tmp_path)
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(tmp_path / "saved")
    size, num_steps = (16, 16) if build is dit else (16, 24), 6
    latents = torch.randn(2, 4, size[0] // 2, size[1] // 2)
    ours = pipelines.load(tmp_path / "saved")

    common = dict(num_inference_steps=num_steps, output_type="np")
    asked = PROMPTS
    with torch.no_grad():
        if build is dit:
            asked = [3, 17]
            noise = lambda **_: latents
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", noise)
                expected = theirs(asked, guidance_scale=options["guidance_scale"], **common).images
        else:
            common |= dict(height=size[0], width=size[1], latents=latents, prompt=PROMPTS)
            if "guidance_scale" in options:
                common["guidance_scale"] = options["guidance_scale"]
            if "negative_prompts" in options:
                common["negative_prompt"] = options["negative_prompts"]
            if "negative_scale" in options:
                common["true_cfg_scale"] = options["negative_scale"]
            if name.startswith("FLUX"):
                common |= dict(latents=pack(latents), max_sequence_length=512 if "dev" in name else 256)
            if name.startswith("PixArt"):
                common |= dict(use_resolution_binning=False, clean_caption=False)
            expected = theirs(**common).images
    images = ours(
        asked, size=size, num_steps=num_steps, noise=latents.numpy().transpose(0, 2, 3, 1), **options
    )
    assert images.shape == expected.shape == (2, *size, 3)
    expected = 255 * expected
    inside = (expected > 5) & (expected < 250)
    assert inside.mean() > 0.3 and expected[inside].std() > 10  # not all at the ends of the scale
    assert np.abs(images - expected).max() <= 2
    # and it is not for want of a difference: another prompt's picture is another
    assert np.abs(expected[0] - expected[1]).max() > 20
