"""Published weights to variables of our modules, and back, by one record for each published class.

Files are safetensors. No file of a user is ever unpickled (`lpips` reads one file of a package, of
known SHA-256). `genjax.pretrained.published` says what a record holds.
"""

from genjax.pretrained.folders import load as load
from genjax.pretrained.folders import save as save
from genjax.pretrained.published import Published as Published
from genjax.pretrained.variables import load_variables as load_variables
