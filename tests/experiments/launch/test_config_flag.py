import sys

import pytest
from absl import flags

from experiments.launch.config_flag import check_overrides, define_config


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
@pytest.mark.parametrize("file", ["digits_flow", "spoken_digits"])
def test_options_of_data_sets_are_flags(file, monkeypatch):
    """Also those that the config does not set; `load_dataset` refuses unknown ones."""
    argv = ["train", f"--config=configs/{file}.py", "--config.data.options.language=fr"]
    monkeypatch.setattr(sys, "argv", argv)
    values = flags.FlagValues()
    define_config("The config.", flag_values=values)
    values(argv)
    check_overrides(values)
    options = values["config"].value.data.options
    assert options.language == "fr" and ("seconds" in options) == (file == "spoken_digits")
