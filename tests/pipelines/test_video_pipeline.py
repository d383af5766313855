"""A small pipeline that makes videos; tests/parity compares a whole system with diffusers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import diffusion, pipelines
from genjax.data import to_uint8
from genjax.diffusion import grids, samplers
from genjax.models.autoencoders.autoencoder_wan import AutoencoderWan
from genjax.models.transformers.wan import Wan
from genjax.nn import Text

SIZE, FRAMES, LATENTS = (4, 8), 7, (4, 2, 4, 2)


def condition(prompts):
    """Return two tokens per text, made of its letters."""
    codes = [np.frombuffer(f"{prompt:6}".encode()[:6], np.uint8) / 64 - 1 for prompt in prompts]
    return Text(jnp.asarray(np.stack(codes), jnp.float32).reshape(-1, 2, 3))


@pytest.fixture(scope="module")
def pipeline():
    network = Wan(width=12, depth=1, num_heads=2, mlp_features=16)
    autoencoder = AutoencoderWan(
        2, widths=(2, 4), blocks=1, temporal_downsample=(True,), latent_mean=(0.2,) * 2
    ).clone(latent_deviation=(0.5,) * 2)
    random, process = np.random.default_rng(0), diffusion.RectifiedFlow()
    examples = dict(
        network=(jnp.zeros((1, *LATENTS)), jnp.zeros(1), condition([""])),
        autoencoder=(jnp.zeros((1, 1, *SIZE, 3)),),
    )
    variables = {}
    for name, module in dict(network=network, autoencoder=autoencoder).items():
        shapes = jax.eval_shape(module.init, jax.random.key(0), *examples[name])
        draw = lambda a: 0.5 * random.standard_normal(a.shape, np.float32)
        variables[name] = jax.tree.map(draw, shapes)
    return pipelines.Pipeline(
        network,
        autoencoder,
        variables,
        condition=condition,
        empty="",
        process=process,
        target=diffusion.velocity,
        sampler=samplers.euler,
        grid=lambda num_steps, tokens: grids.uniform_grid(process, num_steps),
        size=SIZE,
        frames=FRAMES,
        num_steps=2,
        guidance_scale=2.0,
    )


@pytest.fixture(scope="module")
def videos(pipeline):
    return pipeline(["a cat", "a dog"], seeds=[5, 6])


def test_a_video_depends_on_its_prompt_and_seed_alone(pipeline, videos):
    assert videos.shape == (2, FRAMES, *SIZE, 3) and videos.std() > 20
    swapped = pipeline(["a dog", "a cat"], seeds=[6, 5])
    # One step of rounding: another order of a batch may add sums in another order.
    assert np.abs(swapped[::-1].astype(int) - videos).max() <= 1
    others = pipeline(["a cat", "zebras"], seeds=[7, 6])
    assert np.all(np.abs(others.astype(int) - videos).max((1, 2, 3, 4)) > 5)


def test_frames_are_decoded_one_after_the_other_as_the_whole_video(pipeline):
    latents = np.random.default_rng(1).standard_normal((1, *LATENTS), np.float32)
    variables = pipeline.variables["autoencoder"]
    decode = lambda x: pipeline.autoencoder.apply(variables, 0.5 * x + 0.2, method="decode")
    difference = pipeline._decode(variables, latents).astype(int) - to_uint8(
        jax.jit(decode)(latents)
    )
    assert np.abs(difference).max() <= 1
    carried = [eqn for eqn in jax.make_jaxpr(pipeline._decoded)(variables, latents).eqns]
    assert [eqn.params["length"] for eqn in carried if eqn.primitive.name == "scan"] == [3]


def test_numbers_of_frames_are_checked(pipeline):
    with pytest.raises(ValueError, match=r"frames=6 is not 1 \+ n·2"):
        pipeline(["a cat"], frames=6)
    with pytest.raises(ValueError, match="videos from prompts alone: leave images out"):
        pipeline(["a cat"], images=np.zeros((1, *SIZE, 3), np.uint8))
    with pytest.raises(ValueError, match="6×8 pixels do not divide into patches of 4"):
        pipeline(["a cat"], size=(6, 8))
    with pytest.raises(ValueError, match=r"noise has shape .* start from \(1, 3, 2, 4, 2\)"):
        pipeline(["a cat"], frames=5, noise=np.zeros((1, *LATENTS), np.float32))
