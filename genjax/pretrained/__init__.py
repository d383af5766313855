"""Published weights to variables of our modules. Files are safetensors; nothing of a user's is ever unpickled (`lpips` reads
one file of a package, of known SHA-256)."""

from genjax.pretrained.folders import load as load
from genjax.pretrained.folders import save as save
from genjax.pretrained.safetensors_io import load_variables as load_variables
