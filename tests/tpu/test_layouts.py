"""Test the copies and the bytes of a training step that the TPU's compiler compiles.

A copy here is a copy of all tokens into another order of dimensions.
"""

import math
import re

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs import imagenet256_latent_flow
from experiments.speed.programs import program_of
from genjax.devices import make_mesh
from genjax.devices.breakdown import costs_of
from genjax.devices.planning import tpu_topology
from genjax.devices.specifications import DEVICES
from genjax.models.transformers.flux import Flux
from genjax.nn import Text

pytest.importorskip("libtpu", reason="the TPU's compiler is not installed (CONTRIBUTING.md)")

BATCH, TOKENS, WIDTH = 16, 256, 576

shares_flux = pytest.mark.xdist_group("flux")
shares_step = pytest.mark.xdist_group("layouts")  # one worker compiles it


@pytest.fixture(scope="module")
def step():
    """Compile a step of two blocks for one chip, with heads of 72 features as in DiT-XL/2."""
    config = imagenet256_latent_flow.get_config()
    config.model.update(name="DiT", width=WIDTH, depth=2, num_heads=8)
    config.batch_size = BATCH
    mesh = make_mesh({"data": 1}, BATCH, tpu_topology(DEVICES["v5p"], 1))
    program = program_of("train", config, mesh)
    with jax.set_mesh(mesh):
        return program.jitted().lower(*program.args).compile()


def copies(compiled, size):
    """Count the arrays of at least `size` elements that are copied or transposed."""
    found = re.findall(r"= \w+\[([\d,]+)\]\S* (?:copy|transpose)\(", compiled.as_text())
    return sum(math.prod(map(int, shape.split(","))) >= size for shape in found)


@shares_step
def test_tokens_are_not_copied_into_another_order(step):
    """The only copy is that of attention's saved output, which a kernel wrote.

    With a separate dimension for heads there were 34 copies. With weights of queries, keys and
    values that are rounded before they are split, there were 7.
    """
    assert copies(step, BATCH * TOKENS * WIDTH) <= 1


@shares_step
def test_a_step_moves_few_bytes(step):
    """The compiler counts 3.5 GB.

    With 34 copies and with norms in passes of their own, the compiler counted 5.4 GB.
    """
    assert step.cost_analysis()["bytes accessed"] < 4e9


@shares_step
def test_one_pass_updates_parameters_moments_and_averages(step):
    """The norms that are reported are of the same pass."""
    kernel = f"f32[2,{WIDTH},{4 * WIDTH}]"  # of the feed-forward layers
    costs = [each for each in costs_of(step, DEVICES["v5p"]) if each.category == "elementwise"]
    written = [each.shapes.count(kernel) for each in costs if kernel in each.shapes]
    assert written == [4]


@pytest.fixture(scope="module")
def flux():
    """Compile a block of each kind of FLUX.1 with two heads, for one chip."""
    mesh = make_mesh({"data": 1}, 1, tpu_topology(DEVICES["v5p"], 1))
    types = dict(dtype="bfloat16", param_dtype="bfloat16")
    network = Flux(1, 1, 2, (16, 56, 56), **types)
    whole = NamedSharding(mesh, PartitionSpec())
    array = lambda *shape: jax.ShapeDtypeStruct(shape, "bfloat16", sharding=whole)
    inputs = array(4, 32, 32, 16), array(4), Text(array(4, 256, 64), array(4, 64))
    variables = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    variables = jax.tree.map(lambda a: array(*a.shape), variables)
    with jax.set_mesh(mesh):
        return jax.jit(network.apply).lower(variables, *inputs).compile()


@shares_flux
def test_queries_and_keys_are_turned_where_they_are(flux):
    """One kernel normalises and rotates each array of queries or keys, of text, image, and both.

    With a separate dimension for heads there were four copies in a single block.
    """
    assert copies(flux, 4 * 512 * 256) == 0
    kernels = 2 * 3 + 2  # the last two are attention
    assert flux.as_text().count("tpu_custom_call") == kernels


@shares_flux
def test_no_product_adds_to_the_stream_in_its_pass(flux):
    """Without `unfused`, three products wrote the stream in float32, with sums for the next norm.

    At FLUX.1's size such a product takes 15 to 50 % longer by the compiler's schedule.
    """
    costs = costs_of(flux, DEVICES["v5p"])
    written = [each.shapes for each in costs if each.category == "products"]
    assert sum("bf16[4,256,256]" in shapes for shapes in written) >= 10
    assert not [shapes for shapes in written if re.search(r"f32\[4,(1,)?(256|512),256\]", shapes)]
