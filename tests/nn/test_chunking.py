"""Chunks and windows of autoencoders: equal to the whole, in memory that length does not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.autoencoders.autoencoder_ltx import AutoencoderLTX
from genjax.models.autoencoders.autoencoder_ltx_audio import AutoencoderLTXAudio
from genjax.models.autoencoders.autoencoder_wan import AutoencoderWan
from genjax.models.autoencoders.dac import DAC
from genjax.models.autoencoders.oobleck import AutoencoderOobleck
from genjax.models.autoencoders.vocos import Vocos
from genjax.nn import chunking
from genjax.nn.chunking import decode_chunked, encode_chunked
from genjax.nn.quantizers import FactorizedResidualQuantizer

SMALL_LTX = dict(
    latent_channels=3,
    widths=(4, 8, 8),
    blocks=(1,) * 3,
    downsample=("conv", "spatiotemporal"),
    decoder_widths=(4, 4),
    decoder_blocks=(1,) * 3,
    upsample=("spatiotemporal",) * 2,
    noise=(False,) * 3,
    upsample_residual=(False,) * 2,
    upsample_factor=(1,) * 2,
    patch_size=1,
    decoder_reflect=False,
)
VOCOS = dict(sample_rate=8000, n_fft=64, hop=16, num_mels=10, width=8, mlp_width=8, depth=1)
OOBLECK = AutoencoderOobleck(2, 4, 4, multiples=(1, 2), strides=(2, 8))
# A network, the shape of its data, how many latent frames a chunk has, and methods.
NETWORKS = {
    "ltx": (AutoencoderLTX(**SMALL_LTX), (25, 4, 4, 3), 4, ["encode"]),
    "ltx_audio": (AutoencoderLTXAudio(2, 4, 2, 4, (1, 2), 1), (17, 4, 2), 3, ["decode"]),
    "vocos": (Vocos(**VOCOS, centered=False), (16 * 40, 1), 4, ["encode"]),
    "vocos_centered": (Vocos(**VOCOS), (16 * 40, 1), 3, ["decode"]),  # the last chunk overlaps
    "dac": (
        DAC(FactorizedResidualQuantizer(2, 8, 6, 2), 4, 16, strides=(2, 8)),
        (16 * 60, 1),
        4,
        ["decode_indices"],
    ),
}


@functools.cache
def variables_of(network, shape):
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)))
    random = np.random.default_rng(0)
    return jax.tree.map(lambda a: 0.3 * random.standard_normal(a.shape, np.float32), shapes)


def scans(function, *inputs):
    """Return the lengths of the loops in a program."""
    equations = jax.make_jaxpr(lambda *inputs: function(*inputs))(*inputs).eqns  # traced anew
    return [each.params["length"] for each in equations if each.primitive.name == "scan"]


def set_chunks(monkeypatch, network, shape, latent_frames):
    frame = getattr(network, "temporal_factor", None) or network.factor
    places = frame * int(np.prod(shape[1:-1]))
    monkeypatch.setattr(chunking, "PLACES", latent_frames * places)


@pytest.mark.parametrize("name", NETWORKS)
def test_chunks_are_the_whole(name, monkeypatch):
    network, shape, latent_frames, methods = NETWORKS[name]
    variables, random = variables_of(network, shape), np.random.default_rng(1)
    x = random.uniform(-1, 1, (2, *shape)).astype(np.float32)
    latents = jax.eval_shape(functools.partial(network.apply, method="encode"), variables, x)
    inputs = dict(
        encode=x,
        decode=random.standard_normal(jax.tree.leaves(latents)[0].shape, np.float32),
        decode_indices=random.integers(0, 8, (2, 60, 2)),
    )
    for name in methods:
        whole = functools.partial(network.apply, method=name)
        decode = functools.partial(decode_chunked, network, method=name)
        chunked = functools.partial(encode_chunked, network) if name == "encode" else decode
        given = variables, inputs[name]
        assert scans(chunked, *given) == scans(whole, *given)  # short
        with monkeypatch.context() as patch:
            set_chunks(patch, network, shape, latent_frames)
            assert scans(chunked, *given) != scans(whole, *given)
            ours = jax.jit(lambda *given, chunked=chunked: chunked(*given))(*given)
        expected = jax.jit(whole)(*given)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            # The same float32 sums, in the order that the compiler chooses for each length.
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (Vocos(**VOCOS), (16 * 40, 1)),  # a frame more than hops
        (AutoencoderLTX(**SMALL_LTX, encoder_causal=False), (25, 4, 4, 3)),
        (OOBLECK, (16 * 40 + 5, 2)),
    ],
    ids=["vocos", "ltx", "oobleck"],
)
def test_the_others_are_computed_whole(network, shape, monkeypatch):
    monkeypatch.setattr(chunking, "PLACES", 1)
    variables, x = variables_of(network, shape), jnp.zeros((1, *shape))
    encode = functools.partial(encode_chunked, network)
    whole = functools.partial(network.apply, method="encode")
    assert scans(encode, variables, x) == scans(whole, variables, x)


def test_memory_of_encoding_does_not_grow_with_the_length(monkeypatch):
    """It grows by little more than one copy of the video; that of whole videos by 9 copies."""
    network, shape = AutoencoderWan(3, 3, (4, 4), None, 1, (True,)), (15, 4, 4, 3)
    set_chunks(monkeypatch, network, shape, 3)
    variables = variables_of(network, shape)

    def workspace(frames):
        encode = jax.jit(functools.partial(encode_chunked, network))
        x = jax.ShapeDtypeStruct((1, frames, *shape[1:]), jnp.float32)
        return encode.lower(variables, x).compile().memory_analysis().temp_size_in_bytes

    added = 4 * (481 - 121) * np.prod(shape[1:])
    assert workspace(481) - workspace(121) < 1.5 * added
