import json

import pytest
from ml_collections import ConfigDict

from experiments.configuration import kinds
from genjax.diffusion import processes
from genjax.training.workdir import Config


def test_what_a_part_refuses_names_its_field():
    fields = dict(name="PowerFunction", width=0.5)
    with pytest.raises(ValueError, match="^config.averages.wide: a relative width is above 0 and"):
        kinds.AVERAGE.bind(fields, "averages.wide")


def test_fields_with_names_are_objects_of_the_same_kind():
    """Both as a config has them and as they are read from a run's file."""
    config = ConfigDict(
        dict(
            name="Shifted",
            shift=3.0,
            base=dict(
                name="VariancePreservingTable",
                betas=dict(
                    name="zero_terminal_snr", betas=dict(name="scaled_linear_betas", num_steps=100)
                ),
                domain=(0.02, 1.0),
            ),
        )
    )
    betas = processes.zero_terminal_snr(processes.scaled_linear_betas(num_steps=100))
    expected = processes.Shifted(
        shift=3.0, base=processes.VariancePreservingTable(betas=betas, domain=(0.02, 1.0))
    )
    read = json.loads(config.to_json_best_effort(), object_hook=Config)
    for fields in (config, read):
        process = kinds.PROCESS.bind(fields, "process")
        assert process == expected and hash(process) == hash(expected)


def test_wrong_names_inside_say_where():
    fields = dict(name="Shifted", shift=2.0, base=dict(name="RectifiedFlow", sigma=1.0))
    message = "config.process.base.sigma is set, which RectifiedFlow does not take; it takes domain"
    with pytest.raises(ValueError, match=message):
        kinds.PROCESS.bind(fields, "process")


def test_a_part_that_breaks_its_contract_is_refused():
    message = (
        "config.process names .*HalfLife, which has no alpha and no sigma and no domain "
        "and no prior; "
    )
    with pytest.raises(ValueError, match=message + "a Process is a pair"):
        kinds.PROCESS.bind(dict(name="genjax.training.ema.HalfLife", steps=1.0), "process")
    with pytest.raises(
        ValueError, match="config.target names builtins.len, which cannot be called so.*a Target"
    ):
        kinds.TARGET.bind(dict(name="builtins.len"), "target")
    with pytest.raises(ValueError, match="config.loss .* cannot be called so: .* 'target'"):
        kinds.DISCRETE_LOSS.bind(dict(name=f"{__name__}.loss_without_target"), "loss")


def test_a_function_in_place_of_a_space_is_refused():
    with pytest.raises(ValueError, match="space.name is .draw., which has no from_data that"):
        kinds.SPACE.bind({"name": "draw"}, "space", data=None)
    assert kinds.parts_for_field("draw", "space") == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (5, "config.model is 5, and a part has a name and arguments: set config.model = dict"),
        (dict(name=7), "config.model is {'name': 7}, and a part has a name and arguments"),
        (
            dict(name="math.pi"),
            "config.model.name is 'math.pi', which is 3.14159.* and neither a f",
        ),
    ],
)
def test_what_is_no_part_is_refused(fields, words):
    with pytest.raises(ValueError, match=f"^{words.replace('(', '[(]')}"):
        kinds.DIFFUSION_NETWORK.bind(fields, "model")


def test_a_function_that_makes_no_network_is_refused():
    message = (
        "names .*loss_without_target, which cannot be made without config.model.apply and "
        "config.model.key and .*config.model.x; a DiffusionNetwork is"
    )
    with pytest.raises(ValueError, match=message):
        kinds.DIFFUSION_NETWORK.bind(dict(name=f"{__name__}.loss_without_target"), "model")


def loss_without_target(key, apply, x, *conditioning, process, times, variates):
    """A loss that takes any number of conditionings, but not all that the task passes by name."""


# Every choice of some kinds, from the papers' lists in the modules' docstrings, and no helper.
CHOICES = {
    kinds.TARGET: "clean, noise, velocity, v, score, edm",
    kinds.LOSS: "simple_loss, hybrid_loss, given_frames_loss, joint_loss",
    kinds.WEIGHTING: "uniform, min_snr, truncated_snr, edm, sigmoid, p2, bounded_velocity",
    kinds.TIME_DISTRIBUTION: "uniform, logit_normal, mode, cosmap, uniform_log_snr, "
    "log_normal_sigma, karras",
    kinds.AVERAGE: "HalfLife, PowerFunction",
    kinds.OBJECTIVE: "saturating, non_saturating, hinge, least_squares, wasserstein, relativistic",
    kinds.AUGMENTATION: "color, translation, cutout",
    kinds.ADAPTIVE_AUGMENTATION: "ADA",
    kinds.LIKELIHOOD: "bernoulli, gaussian, discretized_logistic",
    kinds.PIXEL_LIKELIHOOD: "categorical, mixture_of_logistics",
    kinds.PIXEL_NETWORK: "GatedPixelCNN, PixelCNNPlusPlus, PixelRNN, PixelTransformer",
    kinds.ORDER: "raster, columns, serpentine, halton",
    kinds.DISTANCE: "l1, l2, charbonnier, multi_scale_mel, multi_resolution_stft",
    kinds.VARIATIONAL: "VAE",
    kinds.SPACE: "Pixels, Levels, Points, Waveforms, Latents, Tokens, StandardizedPixels, "
    "Spectrograms, SoundAndVideo",
    kinds.QUANTIZER: "VectorQuantizer, ResidualVectorQuantizer, FactorizedResidualQuantizer, "
    "FiniteScalarQuantizer, LookupFreeQuantizer, BinarySphericalQuantizer, MultiScaleQuantizer",
    kinds.CONDITION: "Classes, Unconditional, Frames, Prompts, CaptionedClips, PlayedClips, "
    "SoundingClips",
    kinds.TASK: "GAN, Autoencoder, Autoregression, BidirectionalGAN, CausalVideo, Diffusion, "
    "DiscreteDiffusion, Distillation, Drifting, FrameCompletion, Inversion, JointDiffusion, "
    "JointRollOut, MaskedAutoregression, "
    "MaskedTokens, Matching, "
    "NextScale, PackedDiffusion, PixelDistillation, TokenAutoregression, VariationalAutoencoder",
    kinds.SEQUENCE_NETWORK: "LlamaGen, LlamaGen_B, LlamaGen_L, LlamaGen_XL, LlamaGen_XXL, "
    "LlamaGen_1B, LlamaGen_3B, LlamaGen_7B",
    kinds.MASKED_NETWORK: "MaskGIT",
    kinds.CONTINUOUS_TOKEN_NETWORK: "MAR, MAR_B, MAR_L, MAR_H",
    kinds.SCALE_NETWORK: "VAR, VAR_d12, VAR_d16, VAR_d20, VAR_d24, VAR_d30, VAR_d36s",
    kinds.PREFIX: "ClassPrefix, TextPrefix",
    kinds.MASK_SCHEDULE: "cosine, linear, square, cubic, square_root",
    kinds.ENCODER: "Encoder",
    kinds.JOINT_DISCRIMINATOR: "JointDiscriminator",
    kinds.PATCH_DISCRIMINATOR: "Discriminator, SoundDiscriminator",
    kinds.TEXT_ENCODER: "minilm",
    kinds.FEATURES: "PixelFeatures, VGG16Features",
}


@pytest.mark.parametrize("kind", CHOICES, ids=lambda kind: kind.contract.__name__)
def test_a_wrong_name_is_answered_with_the_choices_alone(kind):
    with pytest.raises(ValueError, match=f"'zzz'; there are {CHOICES[kind]}; or give"):
        kind.find("zzz", "field")


def test_networks_samplers_and_processes_are_listed_without_their_layers_and_helpers():
    def listed(kind):
        with pytest.raises(ValueError) as error:
            kind.find("zzz", "field")
        return set(str(error.value).partition("there are ")[2].partition(";")[0].split(", "))

    networks = listed(kinds.DIFFUSION_NETWORK)
    assert networks >= {"DiT", "DiT_S", "MMDiT", "PixArt", "Flux", "ADM", "SongUNet"}
    assert not networks & {"Block", "Embedding", "rms_norm", "decode", "convolution"}
    files = ("dcgan", "mlp_gan", "r3gan", "resnet_gan", "stylegan2", "stylegan3", "vit_gan")
    assert listed(kinds.GENERATOR) == {f"{name}.Generator" for name in files} | {
        "stylegan3_r",
        "stylegan3_t",
    }
    samplers = listed(kinds.SAMPLER)
    assert samplers >= {"euler", "heun", "ddim", "restart", "adaptive", "unipc"}
    assert not samplers & {"run", "cut", "quotient", "heun_in_rho", "adaptive_solution", "Table"}
    processes = listed(kinds.PROCESS)
    assert processes >= {"RectifiedFlow", "EDM", "Shifted", "TrigFlow"}
    assert not processes & {"Process", "corrupt", "expand", "UnitVariance", "linear_betas"}
