"""Devices: meshes, data sheets, and what a program costs on them."""

from genjax.devices.mesh import batch_sharding as batch_sharding
from genjax.devices.mesh import make_mesh as make_mesh
from genjax.devices.mesh import place_batch as place_batch
from genjax.devices.mesh import process_rows as process_rows
from genjax.devices.mesh import replicated as replicated
from genjax.devices.mesh import state_sharding as state_sharding
from genjax.devices.mesh import variable_sharding as variable_sharding
