"""LTX-2's transformer and its text connectors as diffusers publishes them.

The transformer's outputs equal those of diffusers at `timestep` = 1000·t and `sigma` = 1000·(the
largest t), with `use_cross_timestep`. The latents of a clip are in the order of frames, rows and
columns.
"""

from typing import Any

from jaxtyping import PyTree

from genjax.models.encoders.ltx2_connectors import LTX2Connectors
from genjax.models.transformers.ltx2 import LTX2, STREAMS
from genjax.nn import Text
from genjax.pretrained.configuration import Field, Only, Value, expect
from genjax.pretrained.layouts import layer_names, prefixed, to_torch
from genjax.pretrained.published import DIFFUSERS, DIFFUSERS_LTX2, Config, Published, example
from genjax.pretrained.sd3 import HEADS

_ATTENTION = HEADS | dict(projection="to_out.0", gate="to_gate_logits")
_TIME = prefixed(
    "embedding/", "emb.timestep_embedder.", dict(linear_in="linear_1", linear_out="linear_2")
) | dict(dense="linear")


def _stream(name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the layers of a stream within a block, and those before and after the blocks."""
    other, prefix = ("v2a", "audio_") if name == "audio" else ("a2v", "")
    block = (
        prefixed(f"{name}/self_attention/", f"{prefix}attn1.", _ATTENTION)
        | prefixed(f"{name}/text_attention/", f"{prefix}attn2.", _ATTENTION)
        | prefixed(f"{name}_mlp/", f"{prefix}ff.net.", dict(mlp_in="0.proj", mlp_out="2"))
        | {
            f"{name}/modulation/table": f"{prefix}scale_shift_table",
            f"{name}/text_modulation/table": f"{prefix}prompt_scale_shift_table",
            f"exchange/{name}_modulation/table": f"{name}_a2v_cross_attn_scale_shift_table",
        }
    )
    exchange = f"av_cross_attn_{name}_"
    outer = (
        prefixed(f"{name}_time/", f"{prefix}time_embed.", _TIME)
        | prefixed(f"{name}_text_time/", f"{prefix}prompt_adaln.", _TIME)
        | prefixed(f"{name}_exchange/", f"{exchange}scale_shift.", _TIME)
        | prefixed(f"{name}_exchange_gate/", f"{exchange}{other}_gate.", _TIME)
        | {
            f"{name}_in": f"{prefix}proj_in",
            f"{name}_head": f"{prefix}proj_out",
            f"{name}_head_modulation/table": f"{prefix}scale_shift_table",
            f"{name}_text_in": f"{prefix}caption_projection.linear_1",
            f"{name}_text_out": f"{prefix}caption_projection.linear_2",
        }
    )
    return block, outer


_STREAMS = [_stream(name) for name in STREAMS]
_EXCHANGE = {
    f"exchange/{direction}/{ours}": f"{direction}_attn.{published}"
    for direction in ("audio_to_video", "video_to_audio")
    for ours, published in _ATTENTION.items()
}
_BLOCK = _STREAMS[0][0] | _STREAMS[1][0] | _EXCHANGE
_LAYERS = (
    prefixed("blocks/", "transformer_blocks.{}.", _BLOCK)
    | _STREAMS[0][1]
    | _STREAMS[1][1]
    | dict(keyframe_embedding="keyframes_abs_pos_embedding")
)


def _build(config: Config) -> dict[str, Any]:
    heads, gated = config["num_attention_heads"], config["gated_attn"]
    width, audio = (heads * config[f"{of}attention_head_dim"] for of in ("", "audio_"))
    expect(config, "audio_num_attention_heads", heads)
    expect(config, "cross_attention_dim", width)
    expect(config, "audio_cross_attention_dim", audio)
    for name in ("audio_gated_attn", "cross_attn_mod", "audio_cross_attn_mod"):
        expect(config, name, gated)
    expect(config, "use_prompt_embeddings", not gated)
    expect(config, "rope_type", "split")
    return dict(width=width, audio_width=audio)


def _config(module: LTX2, variables: PyTree) -> dict[str, Any]:
    params, gated, heads = variables["params"], module.gated, module.num_heads
    channels = {name: params[f"{name}_in"]["kernel"].shape[0] for name in STREAMS}
    text = {} if gated else dict(caption_channels=params["video_text_in"]["kernel"].shape[0])
    out = {name: params[f"{name}_head"]["kernel"].shape[1] for name in STREAMS}
    return text | dict(
        in_channels=channels["video"],
        audio_in_channels=channels["audio"],
        out_channels=out["video"],
        audio_out_channels=out["audio"],
        attention_head_dim=module.width // heads,
        audio_attention_head_dim=module.audio_width // heads,
        audio_num_attention_heads=heads,
        cross_attention_dim=module.width,
        audio_cross_attention_dim=module.audio_width,
        audio_gated_attn=gated,
        cross_attn_mod=gated,
        audio_cross_attn_mod=gated,
        use_prompt_embeddings=not gated,
        rope_type="split",
    )


def _inputs(module: LTX2, config: Config) -> tuple:
    x = dict(
        video=example(1, 1, 1, config["in_channels"]),
        audio=example(1, config["audio_in_channels"]),
    )
    widths = (config["caption_channels"],) * 2
    if module.gated:
        widths = module.width, module.audio_width
    text = {n: Text(example(1, width)) for n, width in zip(STREAMS, widths, strict=True)}
    return x, dict.fromkeys(STREAMS, example()), text


_SMALL = (
    dict(num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32, num_layers=2)
    | dict(audio_num_attention_heads=2, audio_attention_head_dim=8, audio_cross_attention_dim=16)
    | dict(in_channels=3, out_channels=3, audio_in_channels=4, audio_out_channels=4)
    | dict(rope_type="split")
)
_GATED = dict.fromkeys(
    ("gated_attn", "audio_gated_attn", "cross_attn_mod", "audio_cross_attn_mod"), True
) | dict(use_prompt_embeddings=False)
LTX_2 = Published(
    DIFFUSERS,
    "LTX2VideoTransformer3DModel",
    LTX2,
    entries=dict(
        in_channels=128,
        out_channels=Field("out_channels", 128, kind=int | None),
        patch_size=Only(1),
        patch_size_t=Only(1),
        num_attention_heads=Field("num_heads", 32),
        attention_head_dim=128,
        cross_attention_dim=4096,
        vae_scale_factors=Only([8, 32, 32], (8, 32, 32)),
        pos_embed_max_pos=Only(20),
        base_height=Only(2048),
        base_width=Only(2048),
        gated_attn=Field("gated", False),
        cross_attn_mod=False,
        audio_in_channels=128,
        audio_out_channels=Field("audio_out_channels", 128, kind=int | None),
        audio_patch_size=Only(1),
        audio_patch_size_t=Only(1),
        audio_num_attention_heads=32,
        audio_attention_head_dim=64,
        audio_cross_attention_dim=2048,
        audio_scale_factor=Only(4),
        audio_pos_embed_max_pos=Only(20),
        audio_sampling_rate=Only(16_000),
        audio_hop_length=Only(160),
        audio_gated_attn=False,
        audio_cross_attn_mod=False,
        num_layers=Field("depth", 48),
        activation_fn=Only("gelu-approximate"),
        qk_norm=Only("rms_norm_across_heads"),
        norm_elementwise_affine=Only(False),
        norm_eps=Only(1e-6),
        caption_channels=3840,
        attention_bias=Only(True),
        attention_out_bias=Only(True),
        rope_theta=Only(10_000.0),
        rope_double_precision=Only(True),
        causal_offset=Only(1),
        timestep_scale_multiplier=Only(1000),
        cross_attn_timestep_scale_multiplier=Only(1000),
        rope_type=Value("interleaved", str),
        use_prompt_embeddings=True,
        ff_bias=Field("video_bias", True),
        audio_ff_bias=Only(True),
        use_prompt_adaln_single=Only(True),
        use_keyframes_abs_pos_embedding=Field("keyframe_embedding", False),
    ),
    unused=("perturbed_attn",),  # whether diffusers' form can perturb blocks; ours always can
    build=_build,
    config=_config,
    inputs=_inputs,
    names=lambda module, tensors: layer_names(_LAYERS),
    invert=lambda module, *pair: to_torch(*pair),
    examples=(
        _SMALL | dict(caption_channels=5),
        _SMALL | _GATED | dict(ff_bias=False, use_keyframes_abs_pos_embedding=True),
    ),
)


def _build_connectors(config: Config) -> dict[str, Any]:
    gated, width, audio = config["video_gated_attn"], *_connector_widths(config)
    for name in ("num_attention_heads", "num_layers", "num_learnable_registers"):
        expect(config, f"audio_connector_{name}", config[f"video_connector_{name}"])
    for name in ("audio_gated_attn", "per_modality_projections", "proj_bias"):
        expect(config, name, gated)
    expect(config, "rope_type", "split")
    if gated:
        expect(config, "video_hidden_dim", width)
        expect(config, "audio_hidden_dim", audio)
    elif not config["caption_channels"] == width == audio:
        raise ValueError(
            f"caption_channels={config['caption_channels']} is not supported; without "
            f"per_modality_projections it is the width of the connectors, {width} and {audio}"
        )
    return dict(width=width, audio_width=audio)


def _connector_widths(config: Config) -> list[int]:
    return [
        config[f"{name}_connector_num_attention_heads"]
        * config[f"{name}_connector_attention_head_dim"]
        for name in STREAMS
    ]


def _connectors_config(module: LTX2Connectors, variables: PyTree) -> dict[str, Any]:
    gated, heads, params = module.gated, module.num_heads, variables["params"]
    projection = params["video_projection" if gated else "projection"]["kernel"]
    features = projection.shape[0] // module.num_states
    own = dict(video_hidden_dim=module.width, audio_hidden_dim=module.audio_width) if gated else {}
    return own | dict(
        caption_channels=features,
        video_connector_attention_head_dim=module.width // heads,
        audio_connector_num_attention_heads=heads,
        audio_connector_attention_head_dim=module.audio_width // heads,
        audio_connector_num_layers=module.depth,
        audio_connector_num_learnable_registers=module.num_registers,
        audio_gated_attn=gated,
        per_modality_projections=gated,
        proj_bias=gated,
        rope_type="split",
    )


def _connectors_inputs(module: LTX2Connectors, config: Config) -> tuple:
    states = example(module.num_registers, module.num_states, config["caption_channels"])
    return states, example(module.num_registers, dtype=bool)


def _connector(name: str) -> dict[str, str]:
    """Return the layers of a stream's connector."""
    block = prefixed("attention/", "attn1.", _ATTENTION) | dict(
        mlp_in="ff.net.0.proj", mlp_out="ff.net.2"
    )
    layers = prefixed("blocks/", "transformer_blocks.{}.", block)
    layers |= dict(registers="learnable_registers")
    return prefixed(f"{name}_connector/", f"{name}_connector.", layers) | {
        f"{name}_projection": f"{name}_text_proj_in"
    }


_CONNECTORS = _connector("video") | _connector("audio") | dict(projection="text_proj_in")
_SMALL_CONNECTORS = {
    f"{name}_connector_{entry}": value
    for name in STREAMS
    for entry, value in dict(
        num_attention_heads=2, attention_head_dim=4, num_layers=2, num_learnable_registers=3
    ).items()
} | dict(caption_channels=8, text_proj_in_factor=2, rope_type="split")
_GATED_CONNECTORS = dict.fromkeys(
    ("video_gated_attn", "audio_gated_attn", "per_modality_projections", "proj_bias"), True
) | dict(video_hidden_dim=16, audio_hidden_dim=8, video_connector_attention_head_dim=8)
LTX_2_CONNECTORS = Published(
    DIFFUSERS_LTX2,
    "LTX2TextConnectors",
    LTX2Connectors,
    entries=dict(
        caption_channels=3840,
        text_proj_in_factor=Field("num_states", 49),
        video_connector_num_attention_heads=Field("num_heads", 30),
        video_connector_attention_head_dim=128,
        video_connector_num_layers=Field("depth", 2),
        video_connector_num_learnable_registers=Field("num_registers", 128),
        video_gated_attn=Field("gated", False),
        audio_connector_num_attention_heads=30,
        audio_connector_attention_head_dim=128,
        audio_connector_num_layers=2,
        audio_connector_num_learnable_registers=128,
        audio_gated_attn=False,
        connector_rope_base_seq_len=Only(4096),
        rope_theta=Only(10_000.0),
        rope_double_precision=Only(True),
        rope_type=Value("interleaved", str),
        per_modality_projections=False,
        video_hidden_dim=4096,
        audio_hidden_dim=2048,
        proj_bias=False,
    ),
    unused=("causal_temporal_positioning",),  # diffusers does not read it either
    build=_build_connectors,
    config=_connectors_config,
    inputs=_connectors_inputs,
    names=lambda module, tensors: layer_names(_CONNECTORS),
    invert=lambda module, *pair: to_torch(*pair),
    examples=(_SMALL_CONNECTORS, _SMALL_CONNECTORS | _GATED_CONNECTORS),
)
PUBLISHED = (LTX_2, LTX_2_CONNECTORS)
