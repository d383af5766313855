"""Networks sharded over a mesh compared with themselves on one device.

Prints for each network, as a line of JSON, its errors. For those in COUNTED the line also has what
a forward pass communicates. Names after the mesh choose networks.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.models.sharded_networks \
    '{"data": 2, "tensor": 2, "context": 2}'
"""

import functools
import json
import math
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from genjax.devices import make_mesh
from genjax.devices.collectives import collectives
from genjax.devices.mesh import partition_spec
from genjax.models.autoencoders.autoencoder_kl import AutoencoderKL
from genjax.models.autoencoders.autoencoder_wan import AutoencoderWan
from genjax.models.autoregressive.llamagen import LlamaGen
from genjax.models.autoregressive.mar import MAR
from genjax.models.autoregressive.maskgit import MaskGIT
from genjax.models.autoregressive.prefixes import ClassPrefix
from genjax.models.autoregressive.var import VAR
from genjax.models.encoders.t5 import T5Encoder
from genjax.models.gans import vit_gan
from genjax.models.transformers.dit import DiT
from genjax.models.transformers.drifting_dit import DriftingDiT
from genjax.models.transformers.flux import Flux
from genjax.models.transformers.hunyuan_video import HunyuanVideo
from genjax.models.transformers.jit import JiT
from genjax.models.transformers.lightning_dit import LightningDiT
from genjax.models.transformers.ltx2 import LTX2
from genjax.models.transformers.ltx_video import LTXVideo
from genjax.models.transformers.mean_flow_dit import MeanFlowDiT
from genjax.models.transformers.mmdit import MMDiT
from genjax.models.transformers.pixart import PixArt
from genjax.models.transformers.stable_audio_dit import StableAudioDiT
from genjax.models.transformers.video_dit import VideoDiT
from genjax.models.transformers.wan import Wan
from genjax.models.unets.adm import ADM
from genjax.models.unets.song_unet import SongUNet
from genjax.nn import Text
from genjax.nn.fir import BINOMIAL

BATCH, SIDE, TEXT, WIDTH, DEPTH = 4, 8, 6, 32, 2
COUNTED = ("DiT", "MMDiT", "Flux", "Wan", "VideoDiT", "LTXVideo", "HunyuanVideo")
RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, np.float32)


def cases() -> dict[str, tuple[nn.Module, tuple]]:
    images, times, labels = normal(BATCH, SIDE, SIDE, 3), normal(BATCH), np.arange(BATCH)
    mask = np.arange(TEXT) < np.array([6, 2, 4, 1])[:, None]
    text = Text(normal(BATCH, TEXT, 12), normal(BATCH, 8), mask)
    size = dict(patch_size=2, num_heads=4)
    body = dict(width=WIDTH, depth=DEPTH)
    words = RANDOM.integers(0, 50, (BATCH, 8))
    codes = dict(vocabulary=50, num_heads=4, **body)
    tokens, hidden = normal(BATCH, 8, 3), RANDOM.random((BATCH, 8)) < 0.5
    return {
        "DiT": (DiT(num_classes=10, **size, **body), (images, times, labels)),
        "LightningDiT": (LightningDiT(num_classes=10, **size, **body), (images, times, labels)),
        "JiT": (
            JiT(num_classes=10, class_tokens=2, start=1, bottleneck=8, **size, **body),
            (images, times, labels),
        ),
        # The conditions have 20 tokens, the patches 16. iMF is pMF without what is set here.
        "pMF": (
            MeanFlowDiT(num_classes=10, head_depth=1, bottleneck=8, grid=True, **size, **body),
            (images, times, labels, times / 2, 1 + times**2),
        ),
        "Drifting": (
            DriftingDiT(num_classes=10, class_tokens=2, num_codes=3, **size, **body),
            (images, labels, 1 + times**2, RANDOM.integers(0, 64, (BATCH, 3))),
        ),
        "PixArt": (PixArt(base_size=4, **size, **body), (images, times, text)),
        "MMDiT": (
            MMDiT(max_size=8, dual_layers=(0,), qk_norm=True, width=WIDTH, depth=3, **size),
            (images, times, text),
        ),
        "Flux": (
            Flux(num_double_blocks=2, num_single_blocks=2, rotary_features=(2, 2, 4), **size),
            (images, times, text),
        ),
        "Wan": (
            Wan(num_heads=4, mlp_features=64, takes_image=True, **body),
            (normal(BATCH, 4, SIDE, SIDE, 3), times, text, normal(BATCH, 5, 7)),
        ),
        "ViT generator": (vit_gan.Generator(SIDE, 2, WIDTH, DEPTH, 4), (normal(BATCH, 16), labels)),
        "AutoencoderKL": (
            AutoencoderKL(2, (8, 16), blocks=1, attention_levels=(1,), groups=4),
            (normal(BATCH, 16, 16, 3),),
        ),
        "AutoencoderWan": (
            AutoencoderWan(3, widths=(4, 8), blocks=1, temporal_downsample=(True,)),
            (normal(BATCH, 3, 8, 8, 3),),
        ),
        "ADM": (ADM(8, (1, 2), 1, (1,), num_heads=2, num_classes=10), (images, times, labels)),
        "NCSN++": (
            SongUNet(8, (1, 2), 1, (1,), 10, fourier_scale=1.0, taps=BINOMIAL, residual_input=True),
            (images, times, labels),
        ),
        "LlamaGen": (LlamaGen(grid=(2, 4), prefix=ClassPrefix(10), **codes), (words, labels)),
        "MaskGIT": (MaskGIT(grid=(2, 4), prefix=ClassPrefix(10), **codes), (words, labels)),
        "VAR": (VAR(sides=(1, 2, 3), num_classes=10, **codes), (normal(BATCH, 13, 3), labels)),
        "MAR": (
            MAR(3, (2, 4), WIDTH, DEPTH, 4, 16, 2, num_classes=10, buffer=4),
            (tokens, hidden, labels, tokens, times),
        ),
        "StableAudioDiT": (
            StableAudioDiT(num_heads=4, num_kv_heads=2, text_width=16, **body),
            (normal(BATCH, 7, 3), times, text),
        ),
        "T5": (T5Encoder(50, WIDTH, DEPTH, 4, 8, 64), (words, mask[:, :1] | (words > 5))),
    } | video_cases(text, labels)


def video_cases(text: Text, labels: np.ndarray) -> dict[str, tuple[nn.Module, tuple]]:
    video, times, of_frames = normal(BATCH, 4, 4, 4, 3), normal(BATCH), normal(BATCH, 4)
    body = dict(width=WIDTH, depth=DEPTH, num_heads=4)
    full = VideoDiT((1, 2, 2), num_classes=10, **body)
    factorized = VideoDiT((1, 2, 2), factorized=True, causal=True, **body)
    hunyuan = HunyuanVideo(DEPTH, 4, (4, 2, 2), refiner_depth=1)
    streams = {"video": video, "audio": normal(BATCH, 8, 3)}
    of_streams = dict.fromkeys(streams, times), dict.fromkeys(streams, text)
    return {
        "LTX2": (LTX2(audio_width=16, **body), (streams, *of_streams)),
        "LTXVideo": (LTXVideo(**body), (video, of_frames, text)),
        "HunyuanVideo": (hunyuan, (video, times, text, text, normal(BATCH, 4, 6))),
        "VideoDiT": (full, (video, of_frames, labels)),
        "VideoDiT, factorized": (factorized, (video, times, text)),
    }


def random_variables(network: nn.Module, inputs: tuple) -> dict:
    """Return variables without a zero, so that every layer matters. No program draws them."""

    def draw(path, a):
        if "scale" in jax.tree_util.keystr(path[-1:]):
            return 1 + 0.1 * normal(*a.shape)
        fan_in = max(math.prod(a.shape[-3:-1]), 1)
        return normal(*a.shape) * np.float32(0.1 if a.ndim < 2 else 1 / math.sqrt(fan_in))

    return jax.tree.map_with_path(draw, jax.eval_shape(network.init, jax.random.key(0), *inputs))


def joined(output: jax.Array | dict[str, jax.Array]) -> jax.Array:
    """Return the output, of several streams as one array."""
    leaves = jax.tree.leaves(output)
    if len(leaves) == 1:
        return leaves[0]
    return jnp.concatenate([a.reshape(len(a), -1) for a in leaves], axis=1)


def run(network: nn.Module, inputs: tuple, axes: dict[str, int], counts: bool) -> dict:
    variables = random_variables(network, inputs)
    forward = lambda variables, inputs: joined(network.apply(variables, *inputs))

    def loss(variables, inputs):
        output = forward(variables, inputs)
        return jnp.mean(jnp.square(output)), output

    differentiate = functools.partial(jax.jit, jax.value_and_grad(loss, has_aux=True))
    (whole, output), by_variables = differentiate()(variables, inputs)

    mesh = make_mesh(axes, BATCH)
    batch = NamedSharding(
        mesh, PartitionSpec(tuple(name for name in ("data", "fsdp") if name in axes))
    )

    def sharding(path, a):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, partition_spec(name, a.shape, mesh))

    of_variables = jax.tree.map_with_path(sharding, variables)
    of_inputs = jax.tree.map(lambda _: batch, inputs)
    placed = jax.device_put((variables, inputs), (of_variables, of_inputs))
    with jax.set_mesh(mesh):
        (sharded, found), gradients = differentiate(out_shardings=(None, of_variables))(*placed)
        if counts:
            compiled = jax.jit(forward, out_shardings=batch).lower(*placed).compile()
            found = compiled(*placed)
    # Some parameters' gradient is rounding only, such as a number added to all keys.
    least = 1e-2 * max(np.max(np.abs(a)) for a in jax.tree.leaves(by_variables))
    error = lambda a, b: float(np.max(np.abs(np.asarray(a) - b)) / max(np.max(np.abs(b)), least))
    return {
        "loss": abs(float(sharded) / float(whole) - 1),
        "output": error(found, output),
        "gradients": max(jax.tree.leaves(jax.tree.map(error, gradients, by_variables))),
        "collectives": collectives(compiled, mesh) if counts else None,
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # no program is compiled again
    axes, *names = sys.argv[1:]
    for name, (network, inputs) in cases().items():
        if not names or name in names:
            row = {"name": name, **run(network, inputs, json.loads(axes), name in COUNTED)}
            print(json.dumps(row), flush=True)
