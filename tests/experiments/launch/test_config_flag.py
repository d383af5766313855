"""The flag --config and the flags of its fields."""

import re
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import ConfigDict

from configs import digits_distillation
from experiments.configuration.kinds import parts_for_field
from experiments.launch.config_flag import check_overrides, define_config
from genjax.diffusion import samplers as samplers_of_noise
from genjax.diffusion.discrete import samplers as samplers_of_tokens
from genjax.distillation import flow_maps

CONFIGS = Path(__file__).parents[3] / "configs"
# ml_collections loads a config's file so.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:the load_module\(\) method is deprecated:DeprecationWarning"
)


@pytest.fixture
def config_of(monkeypatch):
    """Give the config of a file and of flags for its fields."""

    def config_of(file: str, *fields: str) -> ConfigDict:
        command = ["program", f"--config={CONFIGS}/{file}", *fields]
        monkeypatch.setattr(sys, "argv", command)  # where ml_collections finds the fields
        values = flags.FlagValues()
        define_config("", flag_values=values)
        values(command)
        check_overrides(values)
        return values.config

    return config_of


def test_a_config_that_starts_from_another_is_read_in_any_folder(config_of, monkeypatch, tmp_path):
    """The command `genjax` starts in a user's folder, where Python finds no package `configs`."""
    monkeypatch.chdir(tmp_path)
    elsewhere = [folder for folder in sys.path if Path(folder).resolve() != CONFIGS.parent]
    monkeypatch.setattr(sys, "path", elsewhere)
    for module in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, module)
    assert config_of("digits_likelihood.py").data.dequantize_levels == 17


@pytest.mark.parametrize("file", ["digits_flow.py", "spoken_digits.py"])
def test_options_of_data_sets_are_flags(file, config_of):
    """Also those that the config does not set; `load_dataset` refuses unknown ones."""
    options = config_of(file, "--config.data.options.language=fr").data.options
    assert options.language == "fr" and ("seconds" in options) == (file == "spoken_digits.py")


def test_a_field_of_the_data_that_the_file_leaves_out_is_a_flag(config_of):
    """A field that does not exist is refused, although the data have a name."""
    flags = "--config.data.sound_shape=(4000,1)", "--config.data.sample_rate=8000"
    data = config_of("digits_flow.py", *flags).data
    assert (data.sound_shape, data.sample_rate) == ((4000, 1), 8000)
    with pytest.raises(ValueError, match="no field 'data.resise'; did you mean --config.data.re"):
        config_of("digits_flow.py", "--config.data.resise=True")


def test_parts_of_discrete_diffusion_are_named_by_flags(config_of):
    """The process keeps the schedule of the config's file, which both processes take."""
    config = config_of(
        "digits_masked_diffusion.py:masked",
        "--config.process.name=Uniform",
        "--config.loss.name=score_entropy_loss",
        "--config.target.name=score",
    )
    assert config.process.to_dict() == dict(name="Uniform", schedule=dict(name="Linear"))
    assert (config.loss.name, config.target.name) == ("score_entropy_loss", "score")


def test_methods_and_samplers_of_students_are_named_by_flags(config_of):
    """Arguments of the config's file that the named method does not take are dropped."""
    file = "digits_distillation.py:MeanFlow"
    config = config_of(file, "--config.method.name=Shortcut", "--config.method.finest=64")
    assert config.method.to_dict() == dict(name="Shortcut", finest=64, guidance_scale=1.25)
    file = "digits_distillation.py:TrajectoryConsistency"  # its sampler has a gamma
    config = config_of(file, "--config.sampling.sampler.name=consistency")
    assert config.sampling.sampler.to_dict() == dict(name="consistency")
    # Every kind of sampler is found: a name that is not found would drop all arguments.
    samplers = dict(ddim=samplers_of_noise, consistency=flow_maps, flow=samplers_of_tokens)
    for name, module in samplers.items():
        assert parts_for_field(name, "sampling.sampler") == [getattr(module, name)]


def test_pixels_in_place_of_latents_have_no_autoencoder(config_of):
    config = config_of("emoji_text.py", "--config.space.name=Pixels")
    assert config.space.to_dict() == dict(name="Pixels")
    flags = "--config.space.name=Latents", "--config.space.run=runs/mine"
    space = config_of("emoji_text.py:cross_attention,pixels", *flags).space
    assert space.to_dict() == dict(name="Latents", run="runs/mine")


def test_flags_of_another_reflow_are_fields(config_of):
    """Those that the header of the config names."""
    (paragraph,) = re.findall(r"^To repeat reflow.*?\n\n", digits_distillation.__doc__, re.M | re.S)
    names = re.findall(r"--config\.([\w.]+)", paragraph)
    config = config_of(
        "digits_distillation.py:Reflow", *(f"--config.{name}=runs/other" for name in names)
    )
    assert config.teacher == config.pairs.directory == "runs/other"
