from configs import digits_flow
from experiments.configuration.runs import mesh_axes


def test_the_mesh_has_its_axes_in_order_and_none_of_tensor_and_context_that_split_nothing():
    config = digits_flow.get_config()
    assert list(mesh_axes(config).items()) == [("data", -1), ("fsdp", 1)]
    config.mesh.update(context=2, tensor=4)
    assert list(mesh_axes(config).items()) == [
        ("data", -1),
        ("fsdp", 1),
        ("tensor", 4),
        ("context", 2),
    ]
    del config.mesh.tensor, config.mesh.context  # as in the record of an old run
    assert list(mesh_axes(config).items()) == [("data", -1), ("fsdp", 1)]
