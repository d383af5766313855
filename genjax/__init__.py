"""genjax: generative models in JAX and Flax. Import the part you need, for example `from genjax import diffusion`."""
