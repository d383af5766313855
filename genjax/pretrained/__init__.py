"""Conversion between published weights and our modules' variables, by one record per class.

Files are safetensors. No file of a user is ever unpickled; `lpips` unpickles one file of a package,
whose SHA-256 is known. `genjax.pretrained.published` describes a record.
"""

from genjax.pretrained.folders import load as load
from genjax.pretrained.folders import save as save
from genjax.pretrained.lora import apply_lora as apply_lora
from genjax.pretrained.lora import init_lora as init_lora
from genjax.pretrained.lora import load_lora as load_lora
from genjax.pretrained.published import Published as Published
from genjax.pretrained.variables import load_variables as load_variables
