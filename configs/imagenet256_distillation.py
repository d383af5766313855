"""Few-step generators of ImageNet at 256×256, for many accelerators.

python -m experiments.encode --config=configs/imagenet256_latent_flow.py \
    --config.space.published=VAE --config.data.directory=IMAGES
python -m experiments.train --config=configs/imagenet256_distillation.py:mean_flow_xl2 \
    --config.space.published=VAE --config.data.directory=IMAGES \
    --workdir=runs/imagenet256_mean_flow

VAE and IMAGES are those of configs/imagenet256_latent_flow.py. pmf_b16 works on pixels: it needs
neither VAE nor the first command. The choices have their papers' settings:
- mean_flow_b4, mean_flow_xl2: mean flow with DiT (Geng et al. 2025), 240 epochs.
- imf_b2, imf_xl2: improved mean flow (Geng et al. 2025, iMF), 640 epochs. The networks take a
  guidance scale and an interval.
- pmf_b16: pixel mean flow (Lu et al. 2026), 320 epochs.
- shortcut_xl2: shortcut models (Frans et al. 2025), 810,000 steps.
- scm_xl2: sCM's training from data (Lu & Song 2025). Process, times, tangent and warm-up are the
  paper's. Network, batch, learning rate and length are those of mean_flow_xl2, since the paper
  trains EDM2's networks at 512×512. Samples take the two steps of diffusers' SCM scheduler: π/2,
  1.3, 0.
- dmd2_xl2: DMD2 (Yin et al. 2024) from a run of configs/imagenet256_latent_flow.py:sit in
  runs/imagenet256_latent_flow, or `--config.teacher`. Learning rates, batch, weights and length are
  the paper's for ImageNet at 64×64. The other choices have no teacher.

Differences from the papers:
- Latents are the encoder's means, standardized by channel, not draws from its Gaussians.
- The embedding of a jump's length starts at 0 in DiT.
- Any example may drop its class. The released mean flows drop it only where s = t, and the released
  shortcut models only where they learn flow matching.
- mean_flow_xl2 is guided at all times. The paper's network is guided at t ≤ 0.75.
- shortcut_xl2 draws all lengths of jumps equally often. The released code divides the jumps
  of a batch by the seven lengths, and gives the remainder to the longest.
- scm_xl2 has no learned weight of the loss over times.
- pmf_b16 lacks the second perceptual term, on ConvNeXt's features. Examples with s = t take the
  later of two drawn times, as in imf_b2. The released code draws one time for them. LPIPS needs
  pip install '.[lpips]'. At the same learning rate, genjax's Muon makes updates 0.2·√max(in,
  out)/√max(1, out/in) times as large as the paper's. The released code's Muon also takes the
  matrices that embed numbers and the last layers. Its Adam has Nesterov's momentum.
- dmd2_xl2 has an averaged student, a teacher guided at 1.5, and discriminator heads on all blocks.
  The paper's teacher is EDM without guidance, and its single head reads the middle of the U-Net.
  Times are uniform. The paper's levels of noise are those of EDM's grid, for the student without
  the first and the last 2 %.

No choice has been run, so there is no score. The steps were compiled and run at toy size only.
"""

import math

from ml_collections import ConfigDict

from configs import imagenet256_latent_flow
from experiments.configuration import base
from experiments.configuration.choices import check_choice

CHOICES = (
    "mean_flow_b4",
    "mean_flow_xl2",
    "imf_b2",
    "imf_xl2",
    "pmf_b16",
    "shortcut_xl2",
    "scm_xl2",
    "dmd2_xl2",
)
EPOCH = 1_281_167  # images
TEACHER_SCALE = 1.5  # of dmd2_xl2
SCM_TIME = 1.3  # of scm_xl2 after its first step


def get_config(choice: str = "mean_flow_b4") -> ConfigDict:
    check_choice(choice, CHOICES)
    config = imagenet256_latent_flow.get_config("sit")
    config.experiment = f"imagenet256_distillation_{choice}"
    base.distillation(config)
    config.optimizer.b2 = 0.95
    config.times = dict(name="logit_normal", mean=-0.4, deviation=1.0)
    config.num_steps = 240 * (EPOCH // 256)
    {
        "mean": _mean_flow,
        "imf": _improved_mean_flow,
        "pmf": _pixel_mean_flow,
        "shortcut": _shortcut,
        "scm": _consistency,
        "dmd2": _distribution_matching,
    }[choice.partition("_")[0]](config, choice.rpartition("_")[2])
    return config


def _mean_flow(config: ConfigDict, size: str) -> None:
    guidance = dict(guidance_scale=1.0, mixing=0.5)
    if size == "b4":
        config.model.update(name="DiT_B", patch_size=4)
    else:
        guidance = dict(guidance_scale=0.2, mixing=0.92)
    config.method = dict(name="MeanFlow", diagonal=0.75, power=1.0, **guidance)


def _improved_mean_flow(config: ConfigDict, size: str) -> None:
    config.batch_size, config.num_steps = 1024, 640 * (EPOCH // 1024)
    config.optimizer.warmup = 10.0 * (EPOCH // 1024)
    interval, scale = ((0.4, 0.65), 8.0) if size == "b2" else ((0.42, 0.62), 8.0)
    config.model = _two_outputs(config, f"IMF_{size[:-1].upper()}", 2, interval)
    config.method = dict(name="GuidedMeanFlow", diagonal=0.5, max_guidance_scale=8.0)
    config.sampling.guidance_scale = scale


def _pixel_mean_flow(config: ConfigDict, size: str) -> None:
    config.batch_size, config.num_steps = 1024, 320 * (EPOCH // 1024)
    config.space = dict(name="Pixels")
    config.target.name = "clean"
    config.model = _two_outputs(config, "PMF_B", 16, (0.1, 0.7))
    config.task = "PixelDistillation"
    config.method = dict(name="PixelMeanFlow", diagonal=0.5, max_guidance_scale=8.0, perceptual=0.4)
    config.times.update(mean=0.8, deviation=0.8)
    config.optimizer.update(name="muon", learning_rate=1e-3)
    # Half-lives of 500, 1,000 and 2,000 thousand images.
    config.averages = {
        name: dict(name="HalfLife", steps=thousands * 1000 / 1024)
        for name, thousands in (("ema", 2000), ("ema_1000", 1000), ("ema_500", 500))
    }
    config.sampling.guidance_scale = 8.5


def _two_outputs(config: ConfigDict, name: str, patch_size: int, interval: tuple) -> dict:
    kept = {field: config.model[field] for field in ("dtype", "remat_policy")}
    return dict(name=name, patch_size=patch_size, interval=interval, **kept)


def _shortcut(config: ConfigDict, size: str) -> None:
    config.num_steps = 810_000
    config.method = dict(name="Shortcut", finest=128, share=1 / 8, largest=4.0, guidance_scale=1.5)
    config.times = dict(name="uniform")  # the method's times are those of its grid
    config.optimizer.update(b2=0.999, weight_decay=0.1)
    config.averages.ema.steps = 692.8  # a decay of 0.999 per step


def _consistency(config: ConfigDict, size: str) -> None:
    config.method = dict(name="ContinuousConsistency", warmup=10_000 / config.num_steps)
    # The latents' deviation is 1.
    preconditioning = dict(name="TrigFlowPreconditioning", data_deviation=1.0)
    config.process = dict(name="TrigFlow", preconditioning=preconditioning)
    # The paper's mean of -1 is for data of deviation 1/2.
    config.times = dict(name="log_normal_sigma", mean=-1.0 + math.log(2), deviation=1.4)
    config.sampling.update(num_steps=2, sampler=dict(name="consistency"))
    config.sampling.grid.shift = SCM_TIME / (math.pi / 2 - SCM_TIME)  # half of π/2 becomes 1.3


def _distribution_matching(config: ConfigDict, size: str) -> None:
    config.task, config.teacher = "Matching", "runs/imagenet256_latent_flow"
    config.times = dict(name="uniform")
    config.weighting = dict(name="edm", data_deviation=1.0)  # of the critic
    config.conditioning_dropout = 0.0
    config.sampling.sampler.name = "consistency"
    config.method = dict(
        name="DMD2",
        critic_updates=5,
        guidance_scale=TEACHER_SCALE,
        adversarial=3e-3,
        discriminator=1e-2,
    )
    # 200,000 updates of the critic, one in five with one of the student.
    config.batch_size, config.num_steps = 280, 200_000 // 5
    player = base.optimizer(
        learning_rate=2e-6,
        schedule="constant",
        warmup=500.0,
        clip_norm=10.0,
        weight_decay=0.01,
    )
    config.optimizer = {name: dict(player) for name in ("student", "critic")}
