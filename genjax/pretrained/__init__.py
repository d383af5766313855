"""Published weights to variables of our modules. Nothing is unpickled: files are safetensors."""

from genjax.pretrained.safetensors_io import load_variables as load_variables
