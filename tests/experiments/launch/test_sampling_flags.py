"""The flags that change how a run is sampled."""

import json
import math

import pytest
from absl import flags
from absl.testing import flagsaver

from configs import digits_flow, digits_masked_diffusion, moving_digits_video
from experiments.configuration import kinds
from experiments.configuration.runs import build, change_sampling
from experiments.launch import sampling_flags
from experiments.tasks.diffusion import interval_of
from genjax.training.workdir import Config


@pytest.fixture(autouse=True)
def parsed():
    with flagsaver.flagsaver():
        flags.FLAGS.mark_as_parsed()
        yield
    flags.FLAGS.unparse_flags()


@pytest.mark.parametrize(
    ("given", "scale"),
    [({}, None), ({"scale": 1.5}, 1.5), ({"weight": 0.5}, 1.5), ({"weight": -1.0}, 0.0)],
)
def test_a_guidance_weight_w_is_a_scale_of_1_plus_w(given, scale):
    for name, value in given.items():
        setattr(flags.FLAGS, f"guidance_{name}", value)
    assert sampling_flags.sampling_changes()["guidance_scale"] == scale


def test_a_guidance_scale_and_a_weight_together_are_an_error():
    flags.FLAGS.guidance_scale, flags.FLAGS.guidance_weight = 2.0, 1.0
    words = "--guidance_scale=2.0 and --guidance_weight=1.0 both set .*1 \\+ the weight: leave out"
    with pytest.raises(ValueError, match=words):
        sampling_flags.sampling_changes()


@pytest.mark.parametrize("given", ["0.2:much", "0.2,0.8", "0.8:0.2", "0.2"])
def test_an_interval_of_guidance_is_two_numbers(given):
    flags.FLAGS.guidance_interval = given
    with pytest.raises(ValueError, match=f"--guidance_interval={given} must be LOW:HIGH, as"):
        sampling_flags.sampling_changes()


@pytest.mark.parametrize(
    "name", ["ancestral", "tau_leaping", "flow", "remasking", "confident", "entropy_bounded"]
)
def test_samplers_of_tokens_are_flags(name):
    flags.FLAGS.sampler = name
    fields = sampling_flags.sampling_changes()["sampler"]
    assert fields == {"name": name}
    kinds.DISCRETE_SAMPLER.bind(fields, "sampling.sampler")


def as_recorded(config):
    """Return a config as a run has it."""
    return json.loads(config.to_json_best_effort(), object_hook=Config)


def test_masked_diffusion_is_sampled_with_an_interval_of_guidance():
    config = as_recorded(digits_masked_diffusion.get_config("masked"))
    flags.FLAGS.sampler, flags.FLAGS.guidance_interval = "flow,eta=2.0", "0.2:0.8"
    change_sampling(config, **sampling_flags.sampling_changes())
    task = build(config)
    assert task.sampler.keywords == {"eta": 2.0}
    guidance, _ = task.sampling_inputs(config.sampling)
    assert [float(each) for each in guidance] == pytest.approx([1.0, 0.2, 0.8])


@pytest.mark.parametrize("name", ["guidance_scale", "guidance_weight", "guidance_interval"])
def test_guidance_without_a_condition_is_refused_and_not_told(name):
    """A scale of 1 is none. The config has another, which changes nothing."""
    config = digits_flow.get_config()
    config.condition = dict(name="Unconditional")
    config = as_recorded(config)
    assert "guidance_scale" not in build(config).describe_sampling(config.sampling)
    setattr(flags.FLAGS, name, "0.2:0.8" if name == "guidance_interval" else 2.0)
    with pytest.raises(ValueError, match="is of guidance, and digits_flow has no condition: leave"):
        change_sampling(config, **sampling_flags.sampling_changes())
    change_sampling(config, guidance_scale=1.0)


@pytest.mark.parametrize("choice", ["text_to_video", "image_to_video", "packed"])
def test_videos_are_sampled_with_an_interval_of_guidance(choice):
    config = as_recorded(moving_digits_video.get_config(choice))
    flags.FLAGS.guidance_interval = "0.2:0.8"
    change_sampling(config, **sampling_flags.sampling_changes())
    assert interval_of(config.sampling) == (0.2, 0.8)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("seed", -1, "seed=-1 must be a whole number from 0 to 4294967295"),
        ("seed", 2**32, "seed=4294967296 must be a whole number"),  # JAX takes it for seed 0
        ("guidance_scale", math.nan, "guidance_scale=nan must be a finite number"),
        ("guidance_weight", math.inf, "guidance_scale=inf must be a finite number"),
    ],
)
def test_numbers_that_would_give_other_samples_or_black_ones_are_refused(name, value, words):
    setattr(flags.FLAGS, name, value)
    with pytest.raises(ValueError, match=words):
        change_sampling(as_recorded(digits_flow.get_config()), **sampling_flags.sampling_changes())
