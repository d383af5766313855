"""Test what the chips of `fsdp` send in a training step that the TPU's compiler compiles."""

import math

import jax
import pytest

from configs import imagenet256_latent_flow
from experiments.speed.programs import program_of
from genjax.devices import make_mesh
from genjax.devices.collectives import collectives
from genjax.devices.hlo import ENDS, STARTS, read
from genjax.devices.planning import tpu_topology
from genjax.devices.specifications import DEVICES

pytest.importorskip("libtpu", reason="the TPU's compiler is not installed (CONTRIBUTING.md)")
pytestmark = pytest.mark.xdist_group("fully sharded")  # one worker compiles the step

CHIPS, DEPTH, WIDTH = 8, 3, 256
LAYER = 12 * WIDTH**2  # weights of attention's and the feed-forward products
MODULATION = 6 * WIDTH**2


@pytest.fixture(scope="module")
def step():
    """Compile a training step of three blocks for eight chips; return it and the mesh."""
    config = imagenet256_latent_flow.get_config()
    config.model.update(name="DiT", width=WIDTH, depth=DEPTH, num_heads=8)
    config.batch_size = 4 * CHIPS
    mesh = make_mesh({"fsdp": CHIPS}, 4 * CHIPS, tpu_topology(DEVICES["v5p"], CHIPS))
    program = program_of("train", config, mesh)
    with jax.set_mesh(mesh):
        return program.jitted().lower(*program.args).compile(), mesh


def test_bytes_are_those_of_a_hand_count(step):
    """Weights are gathered forward and backward, in bfloat16, and gradients go round in nine parts.

    Eight parts would be enough. The gradient of modulations is computed from gathered vectors, so
    it is not sent. The tolerance of 5 % is for biases, embeddings, the first and the last layer.
    """
    found = {each.kind: each.bytes for each in collectives(*step)}
    assert found["all-gather"] == pytest.approx(2 * 2 * DEPTH * (LAYER + MODULATION), rel=0.05)
    assert found["collective-permute"] == pytest.approx(2 * DEPTH * LAYER * 9 / 8, rel=0.05)
    assert found["all-reduce"] + found["all-to-all"] < 0.1 * found["all-gather"]


def test_blocks_send_bfloat16(step):
    """Blocks send their large arrays in bfloat16.

    The test leaves out embeddings and the last layer, which compute in float32 outside the loop.
    """
    program = read(step[0].as_text())
    sent = [
        array
        for operation, _, times in program.runs()
        for inner in program.inside(operation)
        if times == DEPTH
        and inner.opcode.removesuffix("-start")
        in ("all-gather", "collective-permute", "all-reduce")
        for array in inner.results
        if math.prod(array.shape) >= WIDTH**2 // CHIPS
    ]
    assert sent and {array.dtype for array in sent} == {"bf16"}


def test_gradients_go_round_beside_products(step):
    """The schedule has other work between the start and the end of each transfer."""
    program, between = read(step[0].as_text()), []
    for computation in program.computations.values():
        started = {}
        for place, operation in enumerate(computation.values()):
            if operation.opcode == "collective-permute-start":
                started[operation.name] = place
            elif operation.opcode == "collective-permute-done":
                between.append(place - started[operation.operands[0]])
            assert operation.opcode != "collective-permute"
    assert between and min(between) > 1


def test_parameters_are_gathered_beside_other_work(step):
    """In the loops over blocks, other work lies between the start and the end of each gather.

    The first gather of a block, of the modulation's weights, has nothing to go on beside.
    """
    program = read(step[0].as_text())
    bodies = {id(body): body for _, body, times in program.runs() if times == DEPTH}
    waiting, beside, started = 0, [], None
    for operation in (each for body in bodies.values() for each in body.values()):
        parts = list(program.inside(operation))
        marks = " ".join(each.attributes for each in parts)
        waiting += operation.opcode == "all-gather"
        if STARTS in marks:
            started = 0
        elif ENDS in marks:
            beside.append(started)
        elif started is not None:
            started += operation.opcode in ("fusion", "while", "custom-call")
    assert waiting <= 1
    assert len(beside) >= 2 * 6  # of query, key, value, projection and the feed-forward part
    assert min(beside) >= 1
