"""LTX-2's system compared with diffusers', assembled from small random parts."""

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

from genjax import pipelines

from .test_autoencoder_ltx2 import CONFIGS as AUTOENCODERS
from .test_autoencoder_ltx2 import SHARED as AUTOENCODER
from .test_ltx2 import GATED
from .test_ltx2_connectors import GATED as GATED_CONNECTORS
from .test_pipelines import NEGATIVES, PROMPTS, TOKENS, randomize
from .test_tokenizers import gemma

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword"
)

SIZE, FRAMES, RATE, NUM_STEPS = (32, 64), 9, 12.0, 5
WIDTH, AUDIO_WIDTH = 24, 16
BINS, AUDIO_CHANNELS = 8, 2  # of spectrograms; of their latents, which have a quarter of the bins
SCHEDULE = dict(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05) | dict(
    base_image_seq_len=1024, max_image_seq_len=4096, shift_terminal=0.1
)


def text_encoder():
    sizes = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, head_dim=8)
    sizes |= dict(num_key_value_heads=1, intermediate_size=32, vocab_size=TOKENS)
    pictures = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    config = transformers.Gemma3Config(
        text_config=sizes, vision_config=pictures | dict(image_size=8, patch_size=4)
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return model.eval()


def connectors(gated):
    sizes = dict(num_attention_heads=2, attention_head_dim=12, num_layers=2)
    sizes |= dict(num_learnable_registers=16)
    config = {f"{s}_connector_{name}": n for s in ("video", "audio") for name, n in sizes.items()}
    config |= dict(caption_channels=WIDTH, text_proj_in_factor=3, rope_type="split")
    if gated:
        config |= GATED_CONNECTORS | dict(audio_connector_attention_head_dim=8)
        config |= dict(video_hidden_dim=WIDTH, audio_hidden_dim=AUDIO_WIDTH)
    return randomize(LTX2TextConnectors(**config))


def transformer(gated):
    features = AUDIO_CHANNELS * BINS // 4
    model = diffusers.LTX2VideoTransformer3DModel(
        in_channels=3,
        out_channels=3,
        num_attention_heads=2,
        attention_head_dim=WIDTH // 2,
        cross_attention_dim=WIDTH,
        audio_in_channels=features,
        audio_out_channels=features,
        audio_num_attention_heads=2,
        audio_attention_head_dim=AUDIO_WIDTH // 2,
        audio_cross_attention_dim=AUDIO_WIDTH,
        num_layers=2,
        caption_channels=WIDTH,
        rope_type="split",
        perturbed_attn=True,
        **GATED if gated else {},
    )
    with torch.no_grad():
        for name, parameter in randomize(model, 0.5).named_parameters():
            if "attn2.to_v" in name or "attn2.norm" in name:  # so that few tokens matter, and much
                parameter.mul_(4)
    return model


def moments(model):
    with torch.no_grad():
        model.latents_mean.normal_(std=0.3)
        model.latents_std.uniform_(0.8, 1.5)
    return model


def ltx2(folder, gated):
    sizes = AUTOENCODER | AUTOENCODERS["2.3" if gated else "2.0"]
    video = moments(randomize(diffusers.AutoencoderKLLTX2Video(**sizes)))
    with torch.no_grad():
        video.decoder.conv_out.conv.weight.mul_(0.5)  # so that few values are clipped
        for name, parameter in video.named_parameters():
            if name.endswith("conv.bias"):  # so that frames depend on latents much
                parameter.zero_()
    sound = dict(base_channels=4, ch_mult=[1, 2, 2], num_res_blocks=1, mel_bins=BINS)
    vocoder = dict(in_channels=2 * BINS, hidden_channels=8, upsample_kernel_sizes=[7, 4])
    vocoder |= dict(upsample_factors=[3, 2], resnet_kernel_sizes=[3], resnet_dilations=[[1, 2]])
    sound = diffusers.AutoencoderKLLTX2Audio(latent_channels=AUDIO_CHANNELS, **sound)
    return diffusers.LTX2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULE),
        vae=video,
        audio_vae=moments(sound).eval(),
        text_encoder=text_encoder(),
        tokenizer=gemma(folder / "gemma"),
        connectors=connectors(gated),
        transformer=transformer(gated),
        vocoder=LTX2Vocoder(**vocoder).eval(),
    )


def decoded(model, into):
    """Let a decoder note its latents in a list."""
    decode = model.decode

    def noted(latents, *args, **options):
        into.append(latents.numpy())
        return decode(latents, *args, **options)

    model.decode = noted


CASES = {  # diffusers' arguments, and ours
    "2.3": (
        dict(audio_stg_scale=0.5, audio_guidance_rescale=0.3, spatio_temporal_guidance_blocks=[1]),
        dict(perturbation_scale=dict(video=1.0, audio=0.5), rescale=dict(video=0.7, audio=0.3)),
    ),
    "2.0": (
        dict(guidance_scale=4.0, audio_guidance_scale=6.0, stg_scale=0.0, audio_stg_scale=0.0)
        | dict(modality_scale=1.0, audio_modality_scale=1.0)
        | dict(guidance_rescale=0.0, audio_guidance_rescale=0.0),
        dict(guidance_scale=dict(video=4.0, audio=6.0), perturbation_scale=0.0)
        | dict(isolation_scale=1.0, rescale=0.0, negative_prompts=NEGATIVES),
    ),
}


def assert_close(ours, expected, atol=1e-4):
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=0, atol=atol * np.abs(expected).max())


@pytest.mark.parametrize("version", CASES)
def test_videos_and_sounds_agree_and_those_of_other_prompts_do_not(version, tmp_path):
    torch.manual_seed(0)
    theirs = ltx2(tmp_path, gated=version == "2.3")
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(tmp_path / "saved")
    rows, columns = (side // 8 for side in SIZE)
    length = round(FRAMES / RATE * 25)
    video = torch.randn(1, 3, 1 + (FRAMES - 1) // 4, rows, columns).repeat(2, 1, 1, 1, 1)
    audio = torch.randn(1, length, AUDIO_CHANNELS * BINS // 4).repeat(2, 1, 1)
    options, given = CASES[version]
    latents = dict(video=[], audio=[])
    decoded(theirs.vae, latents["video"])
    decoded(theirs.audio_vae, latents["audio"])
    with torch.no_grad():
        normalized = audio * theirs.audio_vae.latents_std + theirs.audio_vae.latents_mean
        made = theirs(
            prompt=PROMPTS,
            negative_prompt=given.get("negative_prompts"),
            height=SIZE[0],
            width=SIZE[1],
            num_frames=FRAMES,
            frame_rate=RATE,
            num_inference_steps=NUM_STEPS,
            latents=theirs._pack_latents(video),
            audio_latents=normalized,  # which diffusers normalizes
            output_type="np",
            **options,
        )
    ours = pipelines.load(tmp_path / "saved")
    assert (ours.size, ours.frames, ours.frame_rate) == ((512, 768), 121, 24)
    assert ours.num_steps == (30 if version == "2.3" else 40)
    noise = dict(video=np.moveaxis(video.numpy(), 1, -1), audio=audio.numpy())
    given |= dict(size=SIZE, frames=FRAMES, frame_rate=RATE, num_steps=NUM_STEPS, noise=noise)
    sampled = ours.latents(PROMPTS, **given)
    assert_close(
        np.moveaxis(sampled["video"] * ours.deviation + ours.mean, -1, 1), latents["video"][0]
    )
    tokens = sampled["audio"] * ours.audio_deviation + ours.audio_mean
    assert_close(tokens, latents["audio"][0].swapaxes(1, 2).reshape(tokens.shape))

    results = ours.decode(sampled)
    expected = 255 * made.frames
    assert results.frames.shape == expected.shape
    inside = (expected > 5) & (expected < 250)
    assert inside.mean() > 0.3 and expected[inside].std() > 10  # not all values are clipped
    assert np.abs(results.frames - expected).max() <= 2
    waveform = made.audio.mT.numpy()
    assert waveform.std() > 0.01 and results.sample_rate == 24_000
    assert_close(results.waveform, waveform)

    changes = [dict(prompts=PROMPTS[::-1]), dict(guidance_scale=9.0)]
    if version == "2.3":
        changes += [dict(perturbation_scale=1.5), dict(perturbed_blocks=[0])]
        changes += [dict(isolation_scale=2.0), dict(rescale=0.0)]
    for change in changes:
        others = ours.latents(**dict(prompts=PROMPTS) | given | change)
        for name in others:  # ten times the allowed difference
            difference = np.abs(others[name] - sampled[name]).max()
            assert difference > 1e-3 * np.abs(sampled[name]).max(), (name, change)
    if version == "2.0":
        pipelines.save(tmp_path / "again", ours)
        again = diffusers.LTX2Pipeline.from_pretrained(tmp_path / "again")
        for part in ("vae", "transformer", "connectors", "audio_vae", "vocoder"):
            state, saved = (getattr(each, part).state_dict() for each in (theirs, again))
            assert state.keys() == saved.keys()
            assert all(torch.equal(state[name], saved[name]) for name in state)
