"""genjax: generative models in JAX and Flax.

Import the part you need, for example `from genjax import diffusion`.
"""

__version__ = "0.1.0"
