"""Samplers: from noise to samples along a grid of times.

Each is called as `sampler(denoiser, process, noise, times, keys=…)`; see `tables.sampler`.
"""

from genjax.diffusion.samplers.adaptive import adaptive as adaptive
from genjax.diffusion.samplers.multistep import adams_bashforth as adams_bashforth
from genjax.diffusion.samplers.multistep import deis as deis
from genjax.diffusion.samplers.multistep import dpm_solver_pp_2m as dpm_solver_pp_2m
from genjax.diffusion.samplers.multistep import dpm_solver_pp_3m as dpm_solver_pp_3m
from genjax.diffusion.samplers.multistep import lms as lms
from genjax.diffusion.samplers.multistep import sa_solver as sa_solver
from genjax.diffusion.samplers.multistep import unipc as unipc
from genjax.diffusion.samplers.one_step import ddim as ddim
from genjax.diffusion.samplers.one_step import euler as euler
from genjax.diffusion.samplers.restart import restart as restart
from genjax.diffusion.samplers.runge_kutta import edm_heun as edm_heun
from genjax.diffusion.samplers.runge_kutta import heun as heun
from genjax.diffusion.samplers.runge_kutta import midpoint as midpoint
from genjax.diffusion.samplers.runge_kutta import rk4 as rk4
from genjax.diffusion.samplers.singlestep import dpm_solver_1 as dpm_solver_1
from genjax.diffusion.samplers.singlestep import dpm_solver_2 as dpm_solver_2
from genjax.diffusion.samplers.singlestep import dpm_solver_3 as dpm_solver_3
from genjax.diffusion.samplers.singlestep import dpm_solver_pp_2s as dpm_solver_pp_2s
from genjax.diffusion.samplers.singlestep import dpm_solver_pp_3s as dpm_solver_pp_3s
from genjax.diffusion.samplers.singlestep import dpm_solver_pp_sde as dpm_solver_pp_sde
from genjax.diffusion.samplers.stochastic import ddpm as ddpm
from genjax.diffusion.samplers.stochastic import dpm2_ancestral as dpm2_ancestral
from genjax.diffusion.samplers.stochastic import edm_stochastic as edm_stochastic
from genjax.diffusion.samplers.stochastic import euler_ancestral as euler_ancestral
from genjax.diffusion.samplers.stochastic import euler_maruyama as euler_maruyama
from genjax.diffusion.samplers.stochastic import predictor_corrector as predictor_corrector
from genjax.diffusion.samplers.stochastic import reverse_diffusion as reverse_diffusion
