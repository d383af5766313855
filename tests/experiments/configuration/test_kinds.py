import json

import pytest
from ml_collections import ConfigDict

from experiments.configuration import kinds
from genjax.diffusion import processes
from genjax.training.workdir import Config


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
    message = "config.process names .*HalfLife, which has no alpha and no sigma and no domain and no prior; "
    with pytest.raises(ValueError, match=message + "a Process is a pair"):
        kinds.PROCESS.bind(dict(name="genjax.training.ema.HalfLife", steps=1.0), "process")
    with pytest.raises(
        ValueError, match="config.target names builtins.len, which cannot be called so.*a Target"
    ):
        kinds.TARGET.bind(dict(name="builtins.len"), "target")
