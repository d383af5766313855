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


def test_no_mesh_no_operation():
    x = jnp.zeros((4, 8))
    assert constrain(x, "data", ("fsdp", "tensor")) is x
    assert not jax.make_jaxpr(lambda x: constrain(x, "data"))(x).eqns


def test_on_four_devices():
    virtual_devices.run(["-W", "error", "-c", FOUR_DEVICES], num_devices=4)
