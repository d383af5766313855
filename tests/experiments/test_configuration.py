import json

import pytest
from experiments.launch.opening import Config, bind, mesh_axes
from ml_collections import ConfigDict

from configs import digits_flow
from genjax.diffusion import processes


def test_fields_with_names_are_objects_of_the_same_module():
    """As a config has them, and as they are read from a run's file."""
    config = ConfigDict(
        dict(
            name="Shifted",
            shift=3.0,
            base=dict(
                name="VariancePreservingTable",
                betas=dict(name="zero_terminal_snr", betas=dict(name="scaled_linear_betas", num_steps=100)),
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
        process = bind(processes, fields, "process")()
        assert process == expected and hash(process) == hash(expected)


def test_wrong_names_inside_say_where():
    fields = dict(name="Shifted", shift=2.0, base=dict(name="RectifiedFlow", sigma=1.0))
    with pytest.raises(ValueError, match="config.process.base has sigma, which RectifiedFlow does not take"):
        bind(processes, fields, "process")


def test_the_mesh_has_its_axes_in_order_and_none_of_tensor_and_context_that_split_nothing():
    config = digits_flow.get_config()
    assert list(mesh_axes(config).items()) == [("data", -1), ("fsdp", 1)]
    config.mesh.update(context=2, tensor=4)
    assert list(mesh_axes(config).items()) == [("data", -1), ("fsdp", 1), ("tensor", 4), ("context", 2)]
    del config.mesh.tensor, config.mesh.context  # of a run of before they were fields
    assert list(mesh_axes(config).items()) == [("data", -1), ("fsdp", 1)]
