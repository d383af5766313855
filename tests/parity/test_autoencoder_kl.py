"""A small random KL autoencoder of diffusers, saved by diffusers and loaded here.

Measured: means, log-variances and images differ by less than 3e-6 of their largest value.
"""

import functools

import jax
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.numpy import load_file, save_file

from genjax import pretrained

from .libraries import assert_opens, with_entries

CONFIGS = {
    "one level": dict(
        block_out_channels=[12], norm_num_groups=3, latent_channels=2, in_channels=1, out_channels=1
    ),
    "Stable Diffusion": dict(block_out_channels=[8, 12], layers_per_block=2, norm_num_groups=4),
    "FLUX": dict(
        block_out_channels=[8, 8, 12],
        norm_num_groups=4,
        latent_channels=6,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    ),
    "four levels": dict(
        block_out_channels=[4, 8, 8, 4],
        norm_num_groups=2,
        mid_block_add_attention=False,
        use_post_quant_conv=False,
        in_channels=4,
        out_channels=2,
        latents_mean=[0.5, 0.25, -1.0, 2.0],
        latents_std=[1.0, 2.0, 3.0, 4.0],
        scaling_factor=0.5,
    ),
    "attention at other levels of the decoder": dict(
        block_out_channels=[4, 8, 12],
        norm_num_groups=4,
        down_block_types=["AttnDownEncoderBlock2D"] + 2 * ["DownEncoderBlock2D"],
        up_block_types=["UpDecoderBlock2D"] + 2 * ["AttnUpDecoderBlock2D"],
        use_quant_conv=False,
    ),
}
# For programs that run only once: this halves the compilation time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SIZES = {"four levels": (27, 17)}  # sides that 8 does not divide


def create(config):
    """Return a network whose weights keep activations in scale, with active biases and norms."""
    levels = len(config["block_out_channels"])
    types = dict(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
    )
    torch.manual_seed(0)
    model = AutoencoderKL(**types | config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            offset, deviation = 0.0, np.prod(parameter.shape[1:]) ** -0.5
            if parameter.ndim == 1:
                offset, deviation = 0.5, 0.3
            parameter.copy_(offset + deviation * torch.randn_like(parameter))
    return model


def channel_last(tensor):
    return tensor.numpy().transpose(0, 2, 3, 1)


def assert_close(ours, theirs):
    # Some 20 to 50 layers in float32, each rounded by about 1e-7 relative.
    assert theirs.std() > 0.05
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """For a configuration: diffusers' network, its folder, and the module loaded from it."""

    @functools.cache
    def save(name):
        theirs, folder = create(CONFIGS[name]), tmp_path_factory.mktemp("theirs")
        theirs.save_pretrained(folder)
        return theirs, folder, *pretrained.load(folder)

    return save


@pytest.mark.parametrize("name", CONFIGS)
def test_agrees(name, saved):
    theirs, _, module, variables = saved(name)
    height, width = SIZES.get(name, (8, 12))
    images = torch.randn(2, theirs.config.in_channels, height, width)
    with torch.no_grad():
        posterior = theirs.encode(images).latent_dist
        expected = [posterior.mean, posterior.logvar, theirs(images).sample]  # the decoded mean

    @quick_jit
    def apply(variables, images):
        mean, log_variance = module.apply(variables, images, method="encode")
        return mean, log_variance, module.apply(variables, mean, method="decode")

    outputs = apply(variables, channel_last(images))
    assert outputs[0].shape == (
        2,
        height // module.factor,
        width // module.factor,
        module.latent_channels,
    )
    for ours, output in zip(outputs, expected, strict=True):
        assert_close(ours, channel_last(output))


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_saved_opens_in_diffusers(name, saved, tmp_path):
    theirs, _, expected, variables = saved(name)
    assert_opens(theirs, expected, variables, tmp_path)
    ours = pretrained.load(tmp_path)[0]
    # The inverse is saved.
    np.testing.assert_allclose(ours.latent_deviation, expected.latent_deviation)
    assert ours.clone(latent_deviation=(1.0,)) == expected.clone(latent_deviation=(1.0,))


@pytest.mark.parametrize(
    ("name", "moments"),
    [
        ("Stable Diffusion", ((0.0,), (1 / 0.18215,))),
        ("FLUX", ((0.1159,), (1 / 0.3611,))),
        ("four levels", ((0.5, 0.25, -1.0, 2.0), (2.0, 4.0, 6.0, 8.0))),
    ],
)
def test_moments_of_latents_are_those_of_pipelines(name, moments, saved):
    """diffusers decodes latents·deviation/scale + mean, or latents/scale + shift.

    The first form has moments for each channel."""
    _, _, module, _ = saved(name)
    assert (module.latent_mean, module.latent_deviation) == moments


def test_log_variance_is_clipped(tmp_path):
    theirs = create(CONFIGS["one level"])
    with torch.no_grad():
        theirs.quant_conv.weight.mul_(60)
    theirs.save_pretrained(tmp_path)
    module, variables = pretrained.load(tmp_path)
    images = torch.randn(4, 1, 16, 16)
    with torch.no_grad():
        expected = channel_last(theirs.encode(images).latent_dist.logvar)
    assert expected.min() == -30 and expected.max() == 20
    encode = quick_jit(functools.partial(module.apply, method="encode"))
    _, log_variance = encode(variables, channel_last(images))
    assert_close(log_variance, expected)


def test_attention_by_its_old_names(saved, tmp_path):
    """Stable Diffusion's files have old names, which diffusers still reads."""
    theirs, folder, _, expected = saved("attention at other levels of the decoder")
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(folder / path.name).items():
        for new_word, old_word in old.items():
            name = name.replace(f".{new_word}.", f".{old_word}.")
        tensors[name] = tensor
    save_file(tensors, path, metadata={"format": "pt"})
    again = AutoencoderKL.from_pretrained(tmp_path)
    assert all(
        torch.equal(value, theirs.state_dict()[name]) for name, value in again.state_dict().items()
    )
    jax.tree.map(np.testing.assert_array_equal, pretrained.load(tmp_path)[1], expected)


@pytest.mark.parametrize(
    "entries, message",
    [
        (
            {"_class_name": "AutoencoderKLMochi"},
            "describes 'AutoencoderKLMochi'; known are .*AutoencoderKL",
        ),
        ({"patch_size": 2}, r"entries that are not known here: \{'patch_size': 2\}"),
        ({"act_fn": "relu"}, "act_fn='relu' is not supported; only 'silu', 'swish'"),
        (
            {"down_block_types": ["SkipDownBlock2D"]},
            "down_block_types=.*SkipDownBlock2D.* is not supported",
        ),
        (
            {"up_block_types": ["SkipUpBlock2D"]},
            "up_block_types=.*SkipUpBlock2D.* is not supported",
        ),
        ({"block_out_channels": [12, 12]}, "has 1 levels; block_out_channels=.* 2"),
        (
            {"shift_factor": 1.0, "latents_mean": [0.0, 0.0]},
            "shift_factor=1.0 is not supported; only None",
        ),
        ({"layers_per_block": 2}, "missing: encoder.down_blocks.0.resnets.1.norm1.weight"),
    ],
)
def test_faults_are_named(entries, message, saved, tmp_path):
    _, folder, _, _ = saved("one level")
    with pytest.raises(ValueError, match=message):
        pretrained.load(with_entries(folder, tmp_path, **entries))
