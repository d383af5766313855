"""Whole systems compared with diffusers', assembled from small random parts and saved there.

Noise, steps and pictures are equal. Mutants that read the text wrongly make other pictures.
"""

import functools
import types

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers

from genjax import pipelines, pretrained
from genjax.data.tokenizers import Tokenizer
from genjax.diffusion.editing import last_steps
from genjax.pipelines.systems import stable_diffusion_3 as sd3_system

from .test_tokenizers import clip, t5

# diffusers makes NumPy arrays of tensors; PyTorch here is older than NumPy's copy keyword.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword"
)

PROMPTS = ["a photo of a cat " * 8, "Red apples on a table, " * 8]
NEGATIVES = ["the cats", ""]
# The layers by which text enters the conditioning and attention.
TEXT = ("text_embedder", "add_v_proj", "attn2.to_v")
TOKENS = 700  # more than the tokenizers have


def randomize(model, scale=1.0):
    """Make all parameters random, so that all have an effect: matrices have about unit gain."""
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
        transformer=loud(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(
            4,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
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
        transformer=loud(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**schedule),
        vae=autoencoder(
            4,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
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
        transformer=loud(transformer),
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
    second.load_state_dict(first.state_dict())  # copies, as in published files
    return diffusers.DiTPipeline(
        transformer=transformer,
        vae=autoencoder(4),
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
        id2label={0: "cat"},
    )


def loud(transformer):
    """Return a random transformer that amplifies the text's part, so that pictures show it."""
    with torch.no_grad():
        for name, parameter in randomize(transformer, 0.5).named_parameters():
            if any(layer in name for layer in TEXT):
                parameter.mul_(4)
    return transformer


def pack(noise):
    """Pack 2×2 latents as FLUX does: channel, row, column."""
    batch, channels, rows, columns = noise.shape
    noise = noise.reshape(batch, channels, rows // 2, 2, columns // 2, 2)
    return noise.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns // 4, 4 * channels)


CASES = {
    "Stable Diffusion 3": (
        stable_diffusion_3,
        dict(negative_prompts=NEGATIVES, guidance_scale=5.0),
    ),
    "Stable Diffusion 3 without T5": (
        functools.partial(stable_diffusion_3, with_t5=False),
        dict(guidance_scale=3.0),
    ),
    "FLUX.1 dev": (functools.partial(flux, dev=True), dict(guidance_scale=3.5)),
    "FLUX.1 dev, guided twice": (
        functools.partial(flux, dev=True),
        dict(guidance_scale=2.0, negative_prompts=NEGATIVES, negative_scale=2.5),
    ),
    "FLUX.1 schnell": (functools.partial(flux, dev=False), dict(guidance_scale=0.0)),
    "PixArt-alpha": (pixart, dict(negative_prompts=NEGATIVES, guidance_scale=4.5)),
    "PixArt-alpha, told the size": (
        functools.partial(pixart, sample_size=128),
        dict(guidance_scale=4.5),
    ),
    "DiT": (dit, dict(guidance_scale=4.0)),
    "DiT unguided": (dit, dict(guidance_scale=0.0)),
}


LENGTH = 77  # CLIP's part of the tokens, before T5's


def without(**parts):
    """Return a mutant of a text with zeros at an index of its tokens or pooled features."""
    return lambda text: text.replace(
        **{name: getattr(text, name).at[i].set(0) for name, i in parts.items()}
    )


MUTANTS = {
    "stable_diffusion_3": {
        "without the first CLIP's states": without(tokens=np.s_[:, :LENGTH, :16]),
        "without the second CLIP's states": without(tokens=np.s_[:, :LENGTH, 16:32]),
        "without the first CLIP's pooled state": without(pooled=np.s_[:, :8]),
        "without the second CLIP's pooled state": without(pooled=np.s_[:, 8:]),
        "without T5": without(tokens=np.s_[:, LENGTH:]),
    },
    "flux": {"without T5": without(tokens=np.s_[:]), "without CLIP": without(pooled=np.s_[:])},
    "pixart": {"without T5": without(tokens=np.s_[:])},
    "dit": {},
}


def pictures_of(theirs, name, build, options, asked, size, num_steps, latents):
    """Return diffusers' pictures."""
    common = dict(num_inference_steps=num_steps, output_type="np")
    with torch.no_grad():
        if build is dit:
            noise = lambda **_: latents
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", noise)
                return theirs(asked, guidance_scale=options["guidance_scale"], **common).images
        common |= dict(height=size[0], width=size[1], latents=latents, prompt=asked)
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
        return theirs(**common).images


def last_states(module, variables, ids, mask):
    """Return the states after the last block, where the system takes the states before it."""
    encoded = module.apply(variables, ids)
    return encoded.states[-1], encoded.projected


@pytest.mark.parametrize("name", CASES)
def test_pictures_agree_and_mutants_do_not(name, tmp_path, monkeypatch):
    """Both pictures start from the same noise, so only their prompts differ."""
    build, options = CASES[name]
    torch.manual_seed(0)
    theirs = build(tmp_path)
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(tmp_path / "saved")
    size, num_steps = (16, 16) if build is dit else (16, 24), 6
    latents = torch.randn(1, 4, size[0] // 2, size[1] // 2).repeat(2, 1, 1, 1)
    asked = [3, 17] if build is dit else PROMPTS
    expected = 255 * pictures_of(theirs, name, build, options, asked, size, num_steps, latents)
    ours = pipelines.load(tmp_path / "saved")
    noise = latents.numpy().transpose(0, 2, 3, 1)
    call = lambda: ours(asked, size=size, num_steps=num_steps, noise=noise, **options)
    images = call()
    assert images.shape == expected.shape == (2, *size, 3)
    inside = (expected > 5) & (expected < 250)
    assert inside.mean() > 0.3 and expected[inside].std() > 10  # not all values are clipped
    assert np.abs(images - expected).max() <= 1  # bytes are rounded by up to .5

    condition, system = ours.condition, getattr(build, "func", build).__name__
    mutants = {"of prompts in another order": lambda prompts: condition(prompts[::-1])}
    mutants["of one prompt for all"] = lambda prompts: condition(prompts[:1] * len(prompts))
    for mutant, change in MUTANTS[system].items():
        if mutant != "without T5" or "without T5" not in name:
            mutants[mutant] = lambda prompts, change=change: change(condition(prompts))
    if system == "stable_diffusion_3":
        monkeypatch.setattr(sd3_system, "_clip", last_states)
        mutants["of CLIP's last states"] = pipelines.load_encoder(tmp_path / "saved")
    changes = {}
    for mutant, ours.condition in mutants.items():
        changes[mutant] = np.abs(call() - expected).max()
    # Twice the allowed difference of pictures; tokenizers' training varies a little.
    assert min(changes.values()) > 2, changes


@pytest.mark.parametrize("strength", [0.01, 0.29, 0.42, 0.48, 0.56, 0.9, 1.0])
@pytest.mark.parametrize("num_steps", [1, 6, 25, 50])
def test_image_to_image_takes_as_many_steps_as_diffusers(num_steps, strength):
    """The classes of FLUX and of inpainting have the same method."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(num_steps)
    theirs = types.SimpleNamespace(scheduler=scheduler)
    method = diffusers.StableDiffusion3Img2ImgPipeline.get_timesteps
    times, _ = method(theirs, num_steps, strength, None)
    assert last_steps(num_steps, strength) == len(times)


def test_diffusers_opens_a_pipeline_that_is_saved_and_makes_its_pictures(tmp_path):
    """The network has changed, as after fine-tuning."""
    torch.manual_seed(0)
    flux(tmp_path, dev=False).save_pretrained(tmp_path / "published")
    ours = pipelines.load(tmp_path / "published")
    head = ours.variables["network"]["params"]["head"]
    head["kernel"] = 0.5 * head["kernel"]
    latents = torch.randn(2, 4, 8, 12)
    given = dict(size=(16, 24), num_steps=2, noise=latents.numpy().transpose(0, 2, 3, 1))
    images = ours(PROMPTS, **given)
    pipelines.save(tmp_path / "ours", ours)
    np.testing.assert_array_equal(pipelines.load(tmp_path / "ours")(PROMPTS, **given), images)
    theirs = diffusers.FluxPipeline.from_pretrained(tmp_path / "ours")
    theirs.set_progress_bar_config(disable=True)
    expected = 255 * pictures_of(theirs, "FLUX", flux, {}, PROMPTS, (16, 24), 2, latents)
    assert np.abs(images - expected).max() <= 1
    ours.variables["network"]["params"]["head"]["kernel"] = 2 * head["kernel"]
    assert np.abs(ours(PROMPTS, **given) - expected).max() > 4
    contents = [
        {path.name for path in (tmp_path / name).iterdir()} for name in ("ours", "published")
    ]
    assert contents[0] == contents[1]


def test_diffusers_opens_a_pipeline_that_was_built_by_hand(tmp_path):
    """Networks and tokenizers may come from anywhere; here a folder provides them one by one."""
    torch.manual_seed(0)
    source = tmp_path / "published"
    flux(tmp_path, dev=False).save_pretrained(source)
    theirs = pipelines.load(source)
    names = (
        "condition empty process target sampler grid size num_steps guidance_scale distilled"
    ).split()
    settings = {name: getattr(theirs, name) for name in names}
    ours = pipelines.Pipeline(theirs.network, theirs.autoencoder, theirs.variables, **settings)
    parts = {
        f"text_encoder{end}": pretrained.load(source / f"text_encoder{end}") for end in ("", "_2")
    }
    parts |= dict(tokenizer=Tokenizer(source / "tokenizer"), tokenizer_2=source / "tokenizer_2")
    schedule = dict(_class_name="FlowMatchEulerDiscreteScheduler", shift=1.0)
    with pytest.raises(
        ValueError, match="'shift': 3.0} gives FluxPipeline another grid than this pipeline"
    ):
        pipelines.save(
            tmp_path / "ours", ours, "FluxPipeline", scheduler=schedule | dict(shift=3.0), **parts
        )
    assert not (tmp_path / "ours").exists()
    pipelines.save(tmp_path / "ours", ours, "FluxPipeline", scheduler=schedule, **parts)
    latents = torch.randn(2, 4, 8, 12)
    given = dict(size=(16, 24), num_steps=2, noise=latents.numpy().transpose(0, 2, 3, 1))
    again = pipelines.load(tmp_path / "ours")
    assert again.network == ours.network and again.autoencoder == ours.autoencoder
    jax.tree.map(np.testing.assert_array_equal, again.variables, ours.variables)
    theirs = diffusers.FluxPipeline.from_pretrained(tmp_path / "ours")
    theirs.set_progress_bar_config(disable=True)
    expected = 255 * pictures_of(theirs, "FLUX", flux, {}, PROMPTS, (16, 24), 2, latents)
    assert np.abs(ours(PROMPTS, **given) - expected).max() <= 1
