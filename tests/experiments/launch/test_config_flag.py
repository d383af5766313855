"""The flag --config: names of parts that flags change, and what becomes of their arguments."""

import sys
from pathlib import Path

import pytest
from absl import flags

from experiments.launch.config_flag import check_overrides, define_config

CONFIGS = Path(__file__).parents[3] / "configs"


# ml_collections loads a config's file so.
@pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")
def test_parts_of_discrete_diffusion_are_named_by_flags(monkeypatch):
    """The process keeps the schedule of the config's file, which both processes take."""
    command = [
        "program",
        f"--config={CONFIGS}/digits_masked_diffusion.py:masked",
        "--config.process.name=Uniform",
        "--config.loss.name=score_entropy_loss",
        "--config.target.name=score",
    ]
    monkeypatch.setattr(sys, "argv", command)  # where ml_collections finds the fields
    values = flags.FlagValues()
    define_config("", flag_values=values)
    values(command)
    check_overrides(values)
    config = values.config
    assert config.process.to_dict() == dict(name="Uniform", schedule=dict(name="Linear"))
    assert (config.loss.name, config.target.name) == ("score_entropy_loss", "score")
