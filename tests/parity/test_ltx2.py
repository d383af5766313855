"""LTX-2's transformer compared with diffusers', through folders, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel

from genjax import pretrained
from genjax.models.transformers.ltx2 import (
    STREAMS,
    audio_seconds,
    head_rotations,
    ltx_2_0,
    ltx_2_3,
    ltx_2_5,
    video_coordinates,
)
from genjax.nn import Text
from genjax.pretrained.safetensors_io import open_tensors

from .libraries import assert_opens, entries_of, with_entries

SIDES, LENGTH = (3, 2, 5), 7  # frames, rows and columns of latents; latents of audio
GATED = dict.fromkeys(
    ("gated_attn", "audio_gated_attn", "cross_attn_mod", "audio_cross_attn_mod"), True
) | dict(use_prompt_embeddings=False)
NEWEST = dict(ff_bias=False, use_keyframes_abs_pos_embedding=True)
# Divided by 6, the widths 40 and 32 leave 4 and 2 features that do not turn.
VERSIONS = {
    "2.0": dict(attention_head_dim=20, cross_attention_dim=40, out_channels=None),
    "2.3": dict(attention_head_dim=16, cross_attention_dim=32, out_channels=3) | GATED,
    "2.5": dict(attention_head_dim=16, cross_attention_dim=32, out_channels=5) | GATED | NEWEST,
}
SIZES = (
    dict(num_attention_heads=2, audio_num_attention_heads=2, audio_attention_head_dim=8)
    | dict(audio_cross_attention_dim=16, num_layers=2, in_channels=5, caption_channels=9)
    | dict(audio_in_channels=6, audio_out_channels=4, rope_type="split", perturbed_attn=True)
)


def randomized(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_((".norm_" in name) + scale * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module", params=VERSIONS)
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    model = randomized(LTX2VideoTransformer3DModel(**SIZES | VERSIONS[request.param]))
    model.save_pretrained(folder)
    module, variables = pretrained.load(folder)
    return folder, model, module, variables, jax.jit(module.apply)


def inputs(module, mask=True):
    random = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(random.standard_normal((2, *shape), np.float32))
    mask = jnp.arange(7) < jnp.array([[7], [4]]) if mask else None
    x = dict(video=normal(*SIDES, 5), audio=normal(LENGTH, 6))
    widths = (module.width, module.audio_width) if module.gated else (9, 9)
    text = {name: Text(normal(7, n), None, mask) for name, n in zip(STREAMS, widths, strict=True)}
    return x, text


def theirs(model, x, t, text, **options):
    """Call the network as the pipelines do, with latents as a sequence and times up to 1000."""
    tensor = lambda a: torch.from_numpy(np.array(a, np.float32))
    times = {name: 1000 * tensor(t[name]) for name in STREAMS}
    levels = {name: times[name].reshape(2, -1).amax(1) for name in STREAMS}
    if times["video"].ndim == 2:  # a time for each token
        times["video"] = times["video"].repeat_interleave(SIDES[1] * SIDES[2], dim=1)
    masks = {name: None if text[name].mask is None else tensor(text[name].mask) for name in STREAMS}
    with torch.no_grad():
        output = model(
            tensor(x["video"]).flatten(1, 3),
            tensor(x["audio"]),
            tensor(text["video"].tokens),
            tensor(text["audio"].tokens),
            times["video"],
            times["audio"],
            levels["video"],
            levels["audio"],
            masks["video"],
            masks["audio"],
            *SIDES,
            audio_num_frames=LENGTH,
            use_cross_timestep=True,
            **options,
        )
    return dict(
        video=output.sample.reshape(2, *SIDES, -1).numpy(), audio=output.audio_sample.numpy()
    )


def assert_close(ours, expected):
    """Assert that both streams agree.

    Both sides are float32. Angles up to 15,708 are rounded to 5e-4, alike but for some units in the
    last place.
    """
    for name in STREAMS:
        assert expected[name].std() > 0.1 and ours[name].dtype == jnp.float32
        assert ours[name].shape == expected[name].shape
        atol = 1e-4 * np.abs(expected[name]).max()
        np.testing.assert_allclose(ours[name], expected[name], rtol=0, atol=atol, err_msg=name)


TIMES = dict(video=jnp.array([0.3, 0.9]), audio=jnp.array([0.8, 0.1]))


@pytest.mark.parametrize(
    ("saved", "mask"),
    [("2.0", True), ("2.0", False), ("2.3", True), ("2.5", True)],
    indirect=["saved"],
)
def test_outputs_agree(saved, mask):
    _, model, module, variables, apply = saved
    x, text = inputs(module, mask)
    rate = 24.0 if mask else 30.0
    outputs = apply(variables, x, TIMES, text, frame_rate=rate)
    assert_close(outputs, theirs(model, x, TIMES, text, fps=rate))


def test_tokens_have_their_own_times(saved):
    """As image to video: the first frame is given, and its time is 0."""
    _, model, module, variables, apply = saved
    x, text = inputs(module)
    audio = jnp.linspace(0, 0.9, 2 * LENGTH).reshape(2, LENGTH)
    t = dict(video=jnp.array([[0.0, 0.7, 0.7], [0.0, 0.2, 0.4]]), audio=audio)
    options, named = {}, {}
    if module.keyframe_embedding:
        named = dict(keyframes=jnp.array([[True, False, False]] * 2))
        tokens = np.repeat(np.array(named["keyframes"]), SIDES[1] * SIDES[2], axis=1)
        options = dict(video_keyframes_mask=torch.from_numpy(tokens)[..., None])
    outputs = apply(variables, x, t, text, **named)
    assert_close(outputs, theirs(model, x, t, text, **options))


def test_perturbed_blocks_and_isolated_streams_agree_for_each_example(saved):
    _, model, module, variables, apply = saved
    x, text = inputs(module)
    perturbed = jnp.array([[False, False], [False, True]])
    outputs = apply(
        variables, x, TIMES, text, perturbed=perturbed, isolated=jnp.array([True, False])
    )
    isolated = theirs(model, x, TIMES, text, isolate_modalities=True)
    blocks = dict(spatio_temporal_guidance_blocks=[1])
    without = theirs(model, x, TIMES, text, **blocks)
    expected = {name: np.stack([isolated[name][0], without[name][1]]) for name in STREAMS}
    assert_close(outputs, expected)
    plain = theirs(model, x, TIMES, text)
    for name in STREAMS:
        change = np.abs(plain[name] - expected[name]).reshape(2, -1).max(1)
        assert change.min() > 0.1 * plain[name].std()


def test_saving_what_was_loaded_changes_no_bit(saved, tmp_path):
    folder, model, module, variables, _ = saved
    back = assert_opens(model, module, variables, tmp_path)
    before, after = open_tensors(folder), open_tensors(tmp_path)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name, strict=True)
    expected, entries = entries_of(model), entries_of(back)
    expected["out_channels"] = expected["out_channels"] or expected["in_channels"]
    # These two do not concern the network: texts of gated networks have the widths of the streams.
    unused = ("perturbed_attn", *(("caption_channels",) if module.gated else ()))
    assert {n: entries[n] for n in entries if n not in unused} == {
        n: expected[n] for n in expected if n not in unused
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [("rope_type", "interleaved"), ("audio_gated_attn", None), ("cross_attention_dim", 17)]
    + [("vae_scale_factors", [8, 16, 16]), ("use_prompt_adaln_single", False)],
)
def test_unsupported_entries_are_named(saved, tmp_path, name, value):
    value = not saved[2].gated if value is None else value
    message = f"cannot be read as LTX2VideoTransformer3DModel: .*{name}"
    with pytest.raises(ValueError, match=message):
        pretrained.load(with_entries(saved[0], tmp_path, **{name: value}))


def test_rotations_are_those_of_the_published_widths():
    with torch.device("meta"):  # 1 GiB of weights that the rotations do not use
        model = LTX2VideoTransformer3DModel(num_layers=0, rope_type="split")
    sides, length, rate = (3, 11, 19), 26, 25.0
    video = model.rope.prepare_video_coords(1, *sides, "cpu", fps=rate)
    audio = model.audio_rope.prepare_audio_coords(1, length, "cpu")
    seconds, rows, columns = video_coordinates(*sides, rate)
    fractions = [seconds / 20, rows / 2048, columns / 2048]
    sound = [audio_seconds(length) / 20]
    pairs = [
        (model.rope(video), head_rotations(fractions, 4096, 32)),
        (model.audio_rope(audio), head_rotations(sound, 2048, 32)),
        (model.cross_attn_audio_rope(audio[:, :1]), head_rotations(sound, 2048, 32)),
    ]
    for tables, ours in pairs:
        expected = np.stack([table[0].transpose(0, 1) for table in tables], axis=-1)
        # Both angles are rounded: a unit in the last place of 15,708 is 1e-3. Few are so large.
        difference = np.abs(ours - expected)
        assert difference.max() < 4e-3 and difference.mean() < 1e-4


@pytest.mark.parametrize(
    ("build", "options", "count"),
    [
        (ltx_2_0, {}, 18_876_174_592),
        (ltx_2_3, GATED, 18_988_838_144),
        (ltx_2_5, GATED | NEWEST, 18_987_859_200),
    ],
)
def test_published_sizes_have_as_many_parameters(build, options, count):
    """The counts of ours are in tests/models."""
    with torch.device("meta"):
        model = LTX2VideoTransformer3DModel(**options)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    heads = model.config.num_attention_heads
    module = build()
    assert (module.width, module.audio_width) == (model.config.cross_attention_dim, 64 * heads)
    assert (module.depth, module.num_heads) == (model.config.num_layers, heads)
