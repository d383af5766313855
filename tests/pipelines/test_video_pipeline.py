"""A small pipeline that makes videos; tests/parity compares a whole system with diffusers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import diffusion, pipelines
from genjax.data import to_float, to_uint8
from genjax.diffusion import grids, samplers
from genjax.models.autoencoders.autoencoder_wan import AutoencoderWan
from genjax.models.transformers.wan import Wan
from genjax.nn import Text, chunking
from genjax.pipelines.experts import Experts
from genjax.pipelines.frames import CleanFrame, FrameChannels
from tests import virtual_devices

SIZE, FRAMES, LATENTS = (4, 8), 7, (4, 2, 4, 2)


def condition(prompts):
    """Return two tokens per text, made of its letters."""
    codes = [np.frombuffer(f"{prompt:6}".encode()[:6], np.uint8) / 64 - 1 for prompt in prompts]
    return Text(jnp.asarray(np.stack(codes), jnp.float32).reshape(-1, 2, 3))


def build(sharding=None, frames=None, boundary=None):
    """Return a pipeline.

    Args:
        frames: how given frames enter, "clean" or "channels"; None for prompts alone.
        boundary: that of two experts; None for one network.
    """
    network = Wan(width=12, depth=1, num_heads=2, mlp_features=16, out_channels=2)
    autoencoder = AutoencoderWan(
        2, widths=(2, 4), blocks=1, temporal_downsample=(True,), latent_mean=(0.2,) * 2
    ).clone(latent_deviation=(0.5,) * 2)
    random, process = np.random.default_rng(0), diffusion.RectifiedFlow()
    channels = 6 if frames == "channels" else 2  # with a mask of 2 and latents of 2
    examples = dict(
        network=(network, jnp.zeros((1, *LATENTS[:-1], channels)), jnp.zeros(1), condition([""])),
        autoencoder=(autoencoder, jnp.zeros((1, 1, *SIZE, 3))),
    )
    if boundary is not None:
        examples["low"] = examples["network"]
    variables = {}
    for name, (module, *inputs) in examples.items():
        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        draw = lambda a: 0.5 * random.standard_normal(a.shape, np.float32)
        variables[name] = jax.tree.map(draw, shapes)
    if boundary is not None:
        variables["network"] = dict(high=variables["network"], low=variables.pop("low"))
        network = Experts(network, network, boundary)
    given = {"clean": lambda: CleanFrame(autoencoder), None: lambda: None} | {
        "channels": lambda: FrameChannels(autoencoder, None, takes_last=True, needs_last=False)
    }
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
        given_frames=given[frames](),
        num_steps=2,
        guidance_scale=2.0,
        sharding=sharding,
    )


@pytest.fixture(scope="module")
def pipeline():
    return build()


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


@pytest.fixture
def frame_by_frame(monkeypatch):
    monkeypatch.setattr(chunking, "PLACES", 1)


def test_frames_are_decoded_one_after_the_other_as_the_whole_video(pipeline, frame_by_frame):
    latents = np.random.default_rng(1).standard_normal((1, *LATENTS), np.float32)
    variables = pipeline.variables["autoencoder"]
    decode = lambda x: pipeline.autoencoder.apply(variables, 0.5 * x + 0.2, method="decode")
    chunked = jax.jit(lambda *inputs: pipeline._decoded(*inputs))  # compiled with these chunks
    difference = chunked(variables, latents).astype(int) - to_uint8(jax.jit(decode)(latents))
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


def test_memory_of_decoding_does_not_grow_with_the_number_of_frames(pipeline, frame_by_frame):
    """It grows by the frames themselves, a byte a value, and at most a copy of them."""
    variables = pipeline.variables["autoencoder"]

    def workspace(decode, frames):
        latents = jax.ShapeDtypeStruct((1, frames, *LATENTS[1:]), jnp.float32)
        compiled = jax.jit(decode).lower(variables, latents).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = lambda v, x: to_uint8(pipeline.autoencoder.apply(v, x, method="decode"))
    frames = 2 * (129 - 9) * SIZE[0] * SIZE[1] * 3
    chunked = lambda *inputs: pipeline._decoded(*inputs)
    growth = [workspace(chunked, n) for n in (9, 129)]
    assert growth[1] - growth[0] <= 1.5 * frames
    growth = [workspace(whole, n) for n in (9, 129)]
    assert growth[1] - growth[0] > 4 * frames


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(2).integers(0, 256, (2, *SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def from_frame():
    return build(frames="clean")


def test_a_clean_frame_is_kept(from_frame, images, monkeypatch):
    """The first frame is the autoencoder's reconstruction, whatever prompt and seed are."""
    videos = from_frame(["a cat", "a dog"], seeds=[5, 6], images=images)
    variables = from_frame.variables["autoencoder"]
    expected = jax.jit(from_frame.autoencoder.apply)(variables, to_float(images)[:, None])
    assert np.abs(videos[:, :1] - to_uint8(expected).astype(float)).max() <= 1
    assert videos[:, 1:].std() > 20

    def fail(*args, **named):
        raise AssertionError("traced again")

    monkeypatch.setattr(Wan, "apply", fail)
    monkeypatch.setattr(AutoencoderWan, "apply", fail)
    others = from_frame(["tea", "milk"], seeds=[1, 2], images=images, guidance_scale=7.5)
    assert np.abs(others[:, :1].astype(int) - videos[:, :1]).max() <= 1
    assert np.abs(others[:, 1:].astype(int) - videos[:, 1:]).max() > 5


ON_DEVICES = """
import sys
import jax, numpy as np
from tests.pipelines.test_video_pipeline import build
from genjax.devices.mesh import batch_sharding
mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
images = np.load(sys.argv[1])
with jax.set_mesh(mesh):
    made = build(batch_sharding(mesh), "channels", 0.75)
    videos = made(["a cat", "a dog"] * 4, images=images, guidance_scale=(3.0, 2.0))
np.save(sys.argv[2], videos)
"""


@pytest.mark.slow
def test_devices_and_batch_do_not_matter_for_experts_with_given_frames(images, tmp_path):
    paths = tmp_path / "images.npy", tmp_path / "videos.npy"
    np.save(paths[0], np.tile(images, (4, 1, 1, 1)))
    virtual_devices.run(["-c", ON_DEVICES, *paths], num_devices=8)
    videos = np.load(paths[1]).astype(int)
    made = build(frames="channels", boundary=0.75)
    alone = made(["a cat", "a dog"], seeds=[4, 5], images=images, guidance_scale=(3.0, 2.0))
    assert alone.std() > 20 and np.abs(videos[4:6] - alone).max() <= 1
    equal = made(["a cat", "a dog"], seeds=[4, 5], images=images, guidance_scale=3.0)
    assert np.abs(equal.astype(int) - alone).max() > 1


@pytest.mark.parametrize("boundary", [0.875, 0.9, 0.417, 3 * 0.1])
def test_experts_switch_at_the_step_of_their_boundary(boundary):
    steps = np.arange(1000)
    is_high = Experts(Wan(12, 1, 2, 16), Wan(12, 1, 2, 16), boundary).is_high
    for times in (np.float32(steps) / 1000, np.float32(steps) * np.float32(1e-3)):
        np.testing.assert_array_equal(is_high(jnp.array(times)), steps >= round(1000 * boundary))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(), "videos from their first frames: give images"),
        (dict(images=(1, 4, 8, 3), strength=0.5), "strength and known are for pictures"),
        (dict(images=(1, 4, 8, 3), last_images=(1, 4, 4, 3)), "last_images are uint8 of shape"),
        (dict(images=(1, 4, 8, 3), last_images=(1, 4, 8, 3), frames=1), "frames=1 has no last"),
        (dict(images=(1, 4, 8, 3), guidance_scale=(3.0, 2.0)), "does not fit this system: give a"),
    ],
)
def test_faults_of_given_frames_are_named(given, message):
    arrays = {name: np.zeros(shape, np.uint8) for name, shape in given.items() if "images" in name}
    with pytest.raises(ValueError, match=message):
        build(frames="channels")(["a cat"], **given | arrays)


def test_a_last_frame_is_for_systems_that_take_one(from_frame, images):
    with pytest.raises(ValueError, match="takes no last frame: leave last_images out"):
        from_frame(["a cat", "a dog"], images=images, last_images=images)
