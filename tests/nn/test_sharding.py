import jax
import jax.numpy as jnp

from genjax.nn import constrain
from tests import virtual_devices

FOUR_DEVICES = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType
from genjax.models.transformers.dit import DiT
from genjax.nn import constrain

x = jnp.zeros((4, 8, 6))

def shards(*axes):
    sharding = jax.jit(lambda x: constrain(x, *axes))(x).sharding
    return sharding.shard_shape(x.shape)

mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
with jax.set_mesh(mesh):
    assert shards("data") == (2, 8, 6)
    assert shards(None, "tensor") == (4, 4, 6)
    assert shards("data", None, "tensor") == (2, 8, 3)
    assert shards(("data", "tensor")) == (1, 8, 6)
    assert shards(("data", "fsdp"), "tensor") == (2, 4, 6)  # this mesh has no fsdp
    assert shards("context", ("fsdp",)) == (4, 8, 6)

    network = DiT(patch_size=2, width=16, depth=2, num_heads=2, num_classes=3)
    one_example = jnp.ones((1, 4, 4, 1)), jnp.ones(1), jnp.zeros(1, int)  # on two shards of "data"
    jax.eval_shape(network.init, jax.random.key(0), *one_example)
"""

FULLY_SHARDED = """
import jax, jax.numpy as jnp
from genjax.devices import make_mesh
from genjax.devices.mesh import batch_sharding, variable_sharding
from genjax.nn import Dense

layer, keys = Dense(128), jax.random.split(jax.random.key(0), 3)
x, variables = jax.random.normal(keys[0], (8, 3, 64)), layer.init(keys[1], jnp.zeros((1, 1, 64)))
loss = lambda variables, x: jnp.sum(jnp.sin(layer.apply(variables, x)))

def derivatives(variables, x):
    of_examples = jax.vmap(jax.grad(loss), (None, 0))(variables, x)
    return jax.value_and_grad(loss, (0, 1))(variables, x), jax.jvp(
        jax.grad(loss, (0, 1)), (variables, x), (variables, x)
    ), jax.tree.map(lambda a: a.sum(0), of_examples)

expected = jax.jit(derivatives)(variables, x)
for axes in ({"fsdp": 4}, {"data": 2, "fsdp": 2}, {"fsdp": 2, "tensor": 2}):
    mesh = make_mesh(axes, 8)
    place = lambda path, a: jax.device_put(a, variable_sharding(mesh)("head/kernel", a.shape))
    with jax.set_mesh(mesh):
        shardings = jax.tree.map(lambda a: a.sharding, jax.tree.map_with_path(place, variables))
        step = jax.jit(derivatives, in_shardings=(shardings, batch_sharding(mesh)))
        for a, b in zip(*map(jax.tree.leaves, (step(variables, x), expected)), strict=True):
            # Sums of up to 24·128 terms of about 1 in float32, in another order.
            assert jnp.allclose(a, b, rtol=1e-5, atol=2e-4), (axes, jnp.abs(a - b).max())
        gathers = jax.jit(layer.apply).trace(variables, x).lower().as_text()
        assert ("sharding_constraint" in gathers) == ("tensor" not in axes)
"""


def test_a_layer_over_fsdp_is_that_of_one_device():
    """With its gradients, those of single examples and forward-mode derivatives."""
    virtual_devices.run(["-W", "error", "-c", FULLY_SHARDED], num_devices=4)


def test_no_mesh_no_operation():
    x = jnp.zeros((4, 8))
    assert constrain(x, "data", ("fsdp", "tensor")) is x
    assert not jax.make_jaxpr(lambda x: constrain(x, "data"))(x).eqns


def test_on_four_devices():
    virtual_devices.run(["-W", "error", "-c", FOUR_DEVICES], num_devices=4)
