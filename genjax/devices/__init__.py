"""Devices: meshes, data sheets, and what a program costs on them."""

from genjax.devices.mesh import make_mesh as make_mesh
from genjax.devices.mesh import process_rows as process_rows
