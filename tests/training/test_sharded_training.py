"""Meshes over virtual devices: the same losses, less memory per device, expected collectives."""

import json
import math

import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from genjax.devices.mesh import partition_spec
from tests.virtual_devices import lines_of

MESHES = [
    {"data": 1},
    {"data": 8},
    {"data": 2, "fsdp": 4},
    {"data": 4, "tensor": 2},
    {"data": 2, "context": 4},
    {"fsdp": 2, "tensor": 2, "context": 2},
    {"fsdp": 8},  # saves a checkpoint
]
RESTORED = [{"fsdp": 4}, {"data": 4}, {"data": 1}]


SCALARS = range(4, 500)  # bytes, of metrics: the loss, by time too, and norms


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("params/head/kernel", (64, 128), P(None, "fsdp")),
        ("params/head/kernel", (128, 64), P("fsdp")),
        ("params/head/kernel", (64, 130), P("fsdp")),  # 130 does not divide by 4
        ("params/head/kernel", (63, 130), P()),
        ("params/head/bias", (1024,), P()),  # small
        (
            "optimizer_state/1/mu/blocks/mlp_in/kernel",
            (128, 64, 32),
            P(None, "fsdp"),
        ),  # 128 layers are scanned
        ("params/building_blocks_of_life/kernel", (128, 64), P("fsdp")),
    ],
)
def test_path_rules(path, shape, expected):
    assert partition_spec(path, shape, AbstractMesh((2, 4), ("data", "fsdp"))) == expected
    assert partition_spec(path, shape, AbstractMesh((8,), ("data",))) == P()


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("params/blocks/query_key_value/kernel", (12, 64, 192), P(None, "fsdp", "tensor")),
        (
            "optimizer_state/1/nu/blocks/image_heads/query/kernel",
            (12, 64, 64),
            P(None, "fsdp", "tensor"),
        ),
        ("params/blocks/text_mlp_in/bias", (12, 256), P(None, "tensor")),
        ("averages/ema/blocks/mlp_out/kernel", (12, 256, 64), P(None, "tensor", "fsdp")),
        ("params/blocks/mlp_out/bias", (12, 64), P()),
        ("params/blocks/modulation/dense/kernel", (12, 64, 384), P(None, "fsdp", "tensor")),
        ("params/blocks/mlp_in/kernel", (12, 64, 85), P(None, "fsdp")),  # 85 features do not divide
        ("params/patch_embedding/kernel", (48, 128), P(None, "fsdp")),
        ("params/blocks/heads/query_norm/scale", (12, 64), P()),
    ],
)
def test_path_rules_with_tensor(path, shape, expected):
    assert (
        partition_spec(path, shape, AbstractMesh((2, 2, 2), ("fsdp", "tensor", "context")))
        == expected
    )


def by_axes(num_devices, meshes, *arguments):
    found = lines_of("tests.training.sharded_run", num_devices, json.dumps(meshes), *arguments)
    return {tuple(row["axes"].items()): row for row in found}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def runs(checkpoint):
    return by_axes(8, MESHES, "--save", checkpoint)


@pytest.fixture(scope="module")
def restored(runs, checkpoint):
    """Return runs of another process, with four devices, that go on from the checkpoint."""
    return by_axes(4, RESTORED, "--restore", checkpoint)


@pytest.fixture(scope="module")
def alone(runs):
    return runs[("data", 1),]


@pytest.mark.slow
def test_every_mesh_has_the_same_losses(runs, alone):
    assert len(runs) == 7
    for row in runs.values():
        # 2e-6: sums over 32 images in float32 (2⁻²⁴ = 6e-8 each) taken in another order, over 30
        # steps.
        np.testing.assert_allclose(row["losses"], alone["losses"], rtol=2e-6)


@pytest.mark.slow
def test_the_state_of_a_device_shrinks_with_fsdp_alone(runs, alone):
    whole, large = alone["state_bytes"], alone["large_bytes"]
    for axes, row in runs.items():
        if "tensor" in dict(axes):
            continue
        assert row["bytes_per_device"] == whole - large + large // dict(axes).get("fsdp", 1)
    assert large > 0.8 * whole
    # Initialising eight parts never holds the whole on one device, what random numbers are made
    # from included.
    eighth = runs[("fsdp", 8),]
    assert eighth["bytes_per_device"] + eighth["init_temporary_bytes"] < whole / 2


@pytest.mark.slow
def test_data_parallel_sums_gradients_once_and_nothing_else(runs, restored):
    for row in (runs[("data", 8),], restored[("data", 4),]):
        ((kind, axes, _, size),) = row["collectives"]
        assert (kind, axes) == ("all-reduce", ["data"])
        assert size - 4 * row["parameters"] in SCALARS


@pytest.mark.slow
def test_fsdp_gathers_parameters_and_sums_gradients(runs, restored, alone):
    for row in (runs[("fsdp", 8),], restored[("fsdp", 4),]):
        by_kind = {kind: size for kind, _, _, size in row["collectives"]}
        assert by_kind.keys() == {
            "all-gather",
            "all-reduce",
        }  # accelerators turn the latter into reduce-scatter
        # Scanned layers' kernels once forward and once backward, the time embedding's forward
        # alone, since its input needs no gradient.
        assert by_kind["all-gather"] == 2 * alone["large_parameter_bytes"]["blocks"] + sum(
            size for name, size in alone["large_parameter_bytes"].items() if name != "blocks"
        )
        assert by_kind["all-reduce"] - 4 * row["parameters"] in SCALARS


@pytest.mark.slow
def test_product_of_axes_gathers_over_fsdp_alone(runs):
    row = runs[("data", 2), ("fsdp", 4)]
    assert {tuple(axes) for kind, axes, _, _ in row["collectives"] if kind == "all-gather"} == {
        ("fsdp",)
    }
    over_data = sum(s for kind, axes, _, s in row["collectives"] if "data" in axes)
    assert (
        over_data < 4 * row["parameters"] / 2
    )  # each device sums over `data` only the part it keeps


def floats(*shape):
    return 4 * math.prod(shape)


# Of tests.training.sharded_run.
BATCH, TOKENS, WIDTH, DEPTH = 32, 16, 32, 2


@pytest.mark.slow
def test_tensor_sums_two_layers_of_a_block_forward_and_two_backward(runs):
    row = runs[("data", 4), ("tensor", 2)]
    over_tensor = {kind: size for kind, axes, _, size in row["collectives"] if axes == ["tensor"]}
    examples = BATCH // 4
    assert over_tensor["all-gather"] == floats(
        examples, (6 * DEPTH + 2) * WIDTH
    )  # shifts, scales and gates
    of_conditioning = (DEPTH + 1) * floats(examples, WIDTH)  # its gradient from all of these
    sums = DEPTH * 4 * floats(examples, TOKENS, WIDTH) + of_conditioning
    assert over_tensor["all-reduce"] - sums in SCALARS
    # Every device keeps half of what the rules split, and sums the gradients of what it keeps.
    over_data = sum(size for _, axes, _, size in row["collectives"] if axes == ["data"])
    split = row["split_over_tensor"]
    assert 0.6 < split / row["parameters"] < 0.9
    biases = (
        floats(6 * DEPTH + 2, WIDTH) / 2
    )  # the other half, of layers whose outputs are gathered
    assert over_data - 4 * (row["parameters"] - split / 2) - biases in SCALARS
    copies = 4  # parameters, two moments, an average
    assert row["bytes_per_device"] - copies * 4 * (row["parameters"] - split // 2) in SCALARS


@pytest.mark.slow
def test_context_gathers_keys_and_sums_what_tokens_share(runs):
    row = runs[("data", 2), ("context", 4)]
    over_context = {kind: size for kind, axes, _, size in row["collectives"] if axes == ["context"]}
    keys_and_values = 2 * floats(BATCH // 2, TOKENS, WIDTH)
    patches = floats(BATCH // 2, TOKENS, 4)  # put together to whole images
    assert over_context["all-gather"] == DEPTH * keys_and_values + patches
    shared = (6 * DEPTH + 2) * floats(BATCH // 2, WIDTH)  # gradients of shifts, scales and gates
    sums = DEPTH * keys_and_values + shared + 4 * row["parameters_of_tokens"]
    assert over_context["all-reduce"] == sums  # images are whole, so the loss is no sum over tokens


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_goes_on_elsewhere(runs, restored, alone):
    saved = runs[("fsdp", 8),]["losses"]
    assert len(restored) == 3
    for row in restored.values():
        assert len(row["losses"]) == 10
        losses = saved[: -len(row["losses"])] + row["losses"]
        np.testing.assert_allclose(losses, alone["losses"], rtol=2e-6)
