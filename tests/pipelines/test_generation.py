"""A single small pipeline; tests/parity compares whole systems with diffusers'."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from genjax import diffusion, pipelines
from genjax.diffusion import grids, samplers
from genjax.models.autoencoders.autoencoder_kl import AutoencoderKL
from genjax.models.transformers.flux import Flux
from genjax.models.transformers.mmdit import MMDiT
from genjax.nn import Text
from genjax.pipelines.generation import _keys, check_labels
from tests import virtual_devices

SIZE = (16, 24)


def condition(prompts):
    """Return four tokens per text, made of its letters."""
    letters = np.zeros((len(prompts), 4, 3), np.float32)
    for row, prompt in zip(letters, prompts, strict=True):
        codes = np.frombuffer(prompt.encode()[:12], np.uint8) / 64 - 1
        row.reshape(-1)[: len(codes)] = codes
    return Text(jnp.asarray(letters), jnp.asarray(letters.sum(1)))


def build(sharding=None, **changes):
    network = MMDiT(patch_size=2, width=16, depth=2, num_heads=2, max_size=8)
    autoencoder = AutoencoderKL(
        latent_channels=4,
        widths=(8, 8),
        blocks=1,
        groups=4,
        latent_mean=(0.2,),
        latent_deviation=(0.5,),
    )
    latents, images = jnp.zeros((1, 8, 12, 4)), jnp.zeros((1, *SIZE, 3))
    init = jax.jit(
        lambda key: (
            network.init(key, latents, jnp.zeros(1), condition([""])),
            autoencoder.init(key, images),
        )
    )

    network_variables, autoencoder_variables = init(jax.random.key(0))
    # the head and the modulation are zero at initialization
    leaves, structure = jax.tree.flatten(network_variables)
    random = np.random.default_rng(0)
    leaves = [a + 0.3 * random.standard_normal(a.shape, np.float32) for a in leaves]
    network_variables = jax.tree.unflatten(structure, leaves)
    process = diffusion.RectifiedFlow()
    return pipelines.Pipeline(
        network,
        autoencoder,
        {"network": network_variables, "autoencoder": autoencoder_variables},
        condition=condition,
        empty="",
        process=process,
        target=diffusion.velocity,
        sampler=samplers.euler,
        grid=lambda num_steps, tokens: grids.uniform_grid(process, num_steps),
        size=SIZE,
        num_steps=4,
        guidance_scale=3.0,
        sharding=sharding,
        **changes,
    )


@pytest.fixture(scope="module")
def pipeline():
    return build()


@pytest.fixture(scope="module")
def pictures(pipeline):
    return pipeline(["a cat", "a dog"], seeds=[5, 6])


def close(images, expected):
    """Allow one step of rounding: another batch adds sums in another order."""
    assert np.abs(images.astype(int) - expected.astype(int)).max() <= 1


def test_a_picture_depends_on_its_prompt_and_seed_alone(pipeline, pictures):
    assert pictures.shape == (2, *SIZE, 3) and pictures.std() > 20
    swapped = pipeline(["a dog", "a cat"], seeds=[6, 5])
    close(swapped[::-1], pictures)
    alone = pipeline(["a dog"], seeds=[6])
    close(alone[0], pictures[1])
    other_seed, other_prompt = pipeline(["a cat", "zebras!"], seeds=[7, 6])
    for images, expected in ((other_seed, pictures[0]), (other_prompt, pictures[1])):
        assert np.abs(images.astype(int) - expected.astype(int)).max() > 20


def test_a_target_that_is_singular_at_the_noise_end_is_refused():
    """x_t is all noise there, so a network that predicts noise says nothing of the picture."""
    pipeline = build()
    pipeline.target = diffusion.noise
    with pytest.raises(ValueError, match="the target noise is singular at t = 1 of RectifiedFlow"):
        pipeline(["a cat"], seeds=[5])


def test_guidance_is_the_extrapolated_velocity(pipeline, pictures):
    """One step from pure noise has a closed form: x = z − v̂."""
    latents = jax.random.normal(jax.random.key(3), (2, 8, 12, 4))
    variables = pipeline.variables["network"]
    velocity = jax.jit(lambda text: pipeline.network.apply(variables, latents, jnp.ones(2), text))
    c, u = velocity(condition(["a cat", "a dog"])), velocity(condition(["mist", "fog"]))
    decode = lambda x: pipeline._decode(pipeline.variables["autoencoder"], x)
    given = dict(negative_prompts=["mist", "fog"], noise=np.asarray(latents), num_steps=1)
    images = pipeline(["a cat", "a dog"], guidance_scale=2.5, **given)
    close(images, np.asarray(decode(latents - (u + 2.5 * (c - u)))))
    del given["negative_prompts"]
    sampled = pipeline.latents(["a cat", "a dog"], guidance_scale=1.0, **given)
    np.testing.assert_allclose(sampled, latents - c, rtol=0, atol=1e-4)
    for scale in (0.0, 0.5, 1.0):  # no guidance, as in the published pipelines
        images = pipeline(["a cat", "a dog"], guidance_scale=scale, **given)
        close(images, np.asarray(decode(latents - c)))


@pytest.mark.parametrize("takes_guidance", [True, False])
def test_a_guidance_scale_as_input_means_distilled_unless_given(takes_guidance, pipeline):
    """A network that takes its guidance scale as an input needs no second condition."""
    names = ("condition", "empty", "process", "target", "sampler", "grid", "size", "num_steps")
    options = {name: getattr(pipeline, name) for name in names} | dict(guidance_scale=3.5)
    network = Flux(2, 1, 1, (2, 2, 2), takes_guidance=takes_guidance)
    make = lambda **given: pipelines.Pipeline(network, pipeline.autoencoder, {}, **options, **given)
    assert (
        make().distilled is takes_guidance
        and make(distilled=not takes_guidance).distilled is not takes_guidance
    )
    negative = make()._conditions(["a cat"], None, SIZE, None, 1.0)[1]
    assert (negative is None) is takes_guidance
    if takes_guidance:
        with pytest.raises(ValueError, match="negative_scale=nan must be a finite number"):
            make()._conditions(["a cat"], None, SIZE, None, np.nan)


def test_seeds_are_those_of_keys_up_to_the_largest():
    seeds = [0, 2**31 - 1, 2**31, 2**32 - 1]
    keys = [jax.random.key(seed) for seed in seeds]
    np.testing.assert_array_equal(
        jax.random.key_data(_keys(seeds)), [jax.random.key_data(k) for k in keys]
    )


def test_a_second_call_traces_nothing(pipeline, pictures, monkeypatch):
    def fail(*args, **named):
        raise AssertionError("traced again")

    call = functools.partial(pipeline, seeds=[1, 2], guidance_scale=7.5)
    call(["cup", "pot"], negative_prompts=["sun", "fog"])  # programs of earlier tests may be gone
    monkeypatch.setattr(MMDiT, "apply", fail)
    monkeypatch.setattr(AutoencoderKL, "apply", fail)
    images = call(["tea", "milk"], negative_prompts=["rain", "snow"])
    assert images.shape == pictures.shape


def test_from_images(pipeline, pictures):
    """Taking all steps forgets the image; fewer steps keep more of the image."""
    images = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
    again = lambda strength: pipeline(
        ["a cat", "a dog"], seeds=[5, 6], images=images, strength=strength, num_steps=8
    )
    encoded = pipeline._encode(pipeline.variables["autoencoder"], images)
    decoded = np.asarray(pipeline._decode(pipeline.variables["autoencoder"], encoded))
    distances = [
        np.abs(again(strength).astype(float) - decoded).mean() for strength in (0.125, 0.5, 1.0)
    ]
    assert distances[0] < distances[1] < distances[2]
    close(again(1.0), pipeline(["a cat", "a dog"], seeds=[5, 6], num_steps=8))
    noise = jax.vmap(lambda key: jax.random.normal(key, (8, 12, 4)))(_keys([5, 6]))
    listed = [images[0], Image.fromarray(images[1])]
    given = dict(images=listed, strength=0.5, num_steps=8, noise=np.asarray(noise))
    close(pipeline(["a cat", "a dog"], **given), again(0.5))


def test_known_pixels_are_kept(pipeline):
    images = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), np.uint8)
    known = np.zeros((1, *SIZE), bool)
    known[:, :, :13] = True  # all pixels of the latents in columns 0 … 11 are known
    encoded = pipeline._encode(pipeline.variables["autoencoder"], images)
    kept = []
    pipeline._decode, decode = (
        (lambda variables, x: kept.append(x) or decode(variables, x)),
        pipeline._decode,
    )
    try:
        pipeline(["a cat"], images=images, known=known)
    finally:
        pipeline._decode = decode
    np.testing.assert_allclose(kept[0][:, :, :6], encoded[:, :, :6], atol=1e-5)
    assert np.abs(kept[0][:, :, 6:] - encoded[:, :, 6:]).mean() > 0.3


BYTES = np.zeros((1, *SIZE, 3), np.uint8)


@pytest.mark.parametrize(
    "prompts, options, message",
    [
        ("a cat", {}, "prompts is the string 'a cat'"),
        ([3], {}, "prompts has 3; expected a list of strings"),
        (["a cat"], dict(seeds=[1, 2]), "1 prompts and 2 seeds"),
        (["a cat"], dict(negative_prompts=["a", "b"]), "1 prompts and 2 negative_prompts"),
        (
            ["a cat"],
            dict(images=BYTES, known=np.ones((1, *SIZE), np.uint8)),
            "known is Boolean, True where",
        ),
        (["a cat"], dict(size=(16, 18)), "16×18 pixels do not divide into patches of 4"),
        (
            ["a cat"],
            dict(size=(0, 24)),
            "0×24 pixels do not divide into patches of 4: take multiples",
        ),
        (["a cat"], dict(size=(-16, 24)), "-16×24 pixels do not divide"),
        (["a cat"], dict(known=np.ones((1, *SIZE), bool)), "give images too"),
        (
            ["a cat"],
            dict(images=BYTES, known=np.ones((1, 8, 8), bool)),
            r"\(1, 8, 8\) is not \(1, 16, 24\)",
        ),
        (["a cat"], dict(images=BYTES / 127.5 - 1), "images are float64 of shape .*; give bytes"),
        (
            ["a cat"],
            dict(images=BYTES[..., :1]),
            r"images are uint8 of shape \(1, 16, 24, 1\); give bytes",
        ),
        (["a", "b"], dict(images=[BYTES[0], BYTES[0, 1:]]), r"have the shapes \[\(15, 24, 3\)"),
        (["a cat"], dict(images=BYTES, size=(8, 8)), r"size=\(8, 8\) and images of \(16, 24\)"),
        ([], {}, "prompts is empty"),
        (["a cat"], dict(num_steps=0), "num_steps=0; a picture takes at least 1"),
        (["a"], dict(negative_prompts="b"), "negative_prompts is the string 'b'; expected a list"),
        (
            ["a"],
            dict(negative_prompts=["b"], guidance_scale=1.0),
            "no effect where guidance_scale=1.0: raise",
        ),
        (
            ["a"],
            dict(negative_scale=2.0),
            "negative_scale=2.0 is for networks with distilled guidance",
        ),
        (
            ["a"],
            dict(noise=np.zeros((1, 4, 8, 12), np.float32)),
            r"\(1, 4, 8, 12\); .* \(1, 8, 12, 4\)",
        ),
        (["a"], dict(guidance_scale=np.nan), "guidance_scale=nan does not fit .* a finite number"),
        (["a"], dict(seeds=[2**32]), "seeds are from 0 to 2³² − 1; got 4294967296"),
        (["a"], dict(seeds=[-1]), "seeds are from 0 to 2³² − 1; got -1"),
        (
            ["a cat"],
            dict(images=np.zeros((1, *SIZE, 3), np.uint8), strength=0.0),
            r"in \(0, 1\]; got 0.0",
        ),
        (["a"], dict(strength=0.5), "strength=0.5 is for images, and there are none: give images"),
        (["a"], dict(decode_time=0.05), "the decoder of this system takes no time: leave out"),
    ],
)
def test_faults_are_named(pipeline, prompts, options, message, monkeypatch):
    monkeypatch.setattr(pipeline, "condition", None)  # no fault waits for the encoders
    with pytest.raises(ValueError, match=message):
        pipeline(prompts, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(size=16), "size is 16; expected .height, width. in pixels"),
        (dict(seeds=0), "seeds is 0; expected a list, one for each picture"),
    ],
)
def test_numbers_in_place_of_lists_are_named(pipeline, options, message, unchecked_annotations):
    with pytest.raises(ValueError, match=message):
        pipeline(["a cat"], **options)


@pytest.mark.parametrize("labels", [[0, 1001], [-1], [3.0], ["3"], [], 3])
def test_labels_are_those_of_classes_or_of_none(labels):
    check_labels("prompts", [0, 1000], 1001)
    with pytest.raises(ValueError, match="must be a list of whole numbers from 0 to 1000"):
        check_labels("prompts", labels, 1001)


ON_DEVICES = """
import sys
import jax, numpy as np
sys.path.insert(0, sys.argv[1])
from test_generation import build
from genjax.devices.mesh import batch_sharding
mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
prompts, seeds = ["a cat", "a dog"] * 4, range(8)
with jax.set_mesh(mesh):
    images = build(batch_sharding(mesh))(prompts, seeds=seeds, num_steps=2)
np.save(sys.argv[2], images)
"""


@pytest.mark.slow
def test_devices_do_not_matter(pipeline, tmp_path):
    path = tmp_path / "images.npy"
    virtual_devices.run(["-c", ON_DEVICES, os.path.dirname(__file__), path], num_devices=8)
    expected = pipeline(["a cat", "a dog"] * 4, seeds=range(8), num_steps=2)
    close(np.load(path), expected)
