"""Samplers: from noise to samples along a grid of times, `sampler(denoiser, process, noise, times, keys=…)`."""

from genjax.diffusion.samplers.one_step import ddim as ddim
from genjax.diffusion.samplers.one_step import euler as euler
from genjax.diffusion.samplers.stochastic import ddpm as ddpm
from genjax.diffusion.samplers.stochastic import euler_ancestral as euler_ancestral
