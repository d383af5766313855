"""Trains small autoencoders over meshes, and prints their losses and norms as a line of JSON each.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.experiments.autoencoder_run kl
'kl={"data": 2, "tensor": 4}'
"""

import dataclasses
import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from configs import digits_vae, emoji_autoencoder
from experiments.configuration import base
from experiments.configuration.runs import build
from genjax.devices import make_mesh
from genjax.devices.mesh import place_batch
from genjax.metrics.lpips import LPIPS
from genjax.training import abstract_state, init_state, place_frozen
from genjax.training.loop import compile_update

BATCH_SIZE, STEPS, START = 8, 4, 2
CODES, WARMUP = 8, 4
SOUND = {
    "codec": dict(
        name="DAC",
        quantizer=dict(
            name="FactorizedResidualQuantizer", num_levels=2, num_codes=CODES, features=4, width=2
        ),
        width=2,
        decoder_width=4,
        strides=(4,),
    ),
    "oobleck": dict(
        name="AutoencoderOobleck",
        latent_channels=2,
        width=2,
        decoder_width=2,
        multiples=(1, 2),
        strides=(2, 4),
        audio_channels=1,
    ),
    "mel": dict(
        name="MelAutoencoder", latent_channels=2, width=4, depth=1, strides=(2,), num_mels=6
    )
    | dict(vocoder_width=4, vocoder_depth=1, sample_rate=8000, n_fft=64, hop=16),
    "vocoder": dict(
        name="Vocos", sample_rate=8000, n_fft=64, hop=16, num_mels=6, width=4, mlp_width=8
    )
    | dict(depth=1, centered=False),
}


def sound_config(choice: str):
    """Return the config of a narrow autoencoder of sound, with two parts of a discriminator."""
    config = base.autoencoder("sound", name="sound", feature="audio", image_shape=(256, 1))
    config.unlock()
    config.space = dict(name="Waveforms")
    config.model = SOUND[choice]
    config.reconstruction = dict(
        name="multi_scale_mel", sample_rate=8000, n_ffts=(32, 64), num_mels=(4, 6)
    )
    weights = dict(codec=dict(commitment=0.25, codebook=1.0), oobleck=dict(divergence=0.1))
    weights |= dict(mel=dict(divergence=0.1, mel=0.5), vocoder={})
    config.weights = weights[choice]
    config.adversary.update(weight=0.5, adaptive=False, start_step=START, feature_matching=2.0)
    config.adversary.objective = "least_squares"
    config.adversary.network = dict(
        name="SoundDiscriminator", periods=(3,), n_ffts=(32,), period_widths=(4, 4), width=4
    )
    config.adversary.network.dilations = (1,)
    return config


def small_config(choice: str):
    """Return the config of a narrow network for a choice.

    "kl", "vq" and "video" train against a discriminator from step `START` on. For "kl" and "vq" the
    discriminator has batch norm, and R1 at every other step. The codes of "vq" are moving averages.
    The last latent frame of "video" stands for more frames than the clip has left. "iwae" is a
    variational autoencoder, named by its bound. `SOUND` are autoencoders of sound.
    """
    if choice in SOUND:
        config = sound_config(choice)
        optimizers = list(config.optimizer.values())
    elif choice == "iwae":
        config = digits_vae.get_config(choice)
        config.model.update(width=8, depth=1, latent_size=4)
        config.bound.num_samples = 3
        optimizers = [config.optimizer]
    else:
        config = emoji_autoencoder.get_config("vq" if choice == "vq" else "kl_adversarial")
        config.unlock()
        config.data.update(image_shape=(16, 16, 3), flip=choice == "video")
        config.model.update(widths=(4, 4), blocks=0, groups=2, mid_attention=False)
        if choice != "vq":
            config.weights.divergence = 0.1  # so that much of it is in the gradient
        config.adversary.update(start_step=START, r1=dict(weight=0.1, every=2))
        config.adversary.network.update(width=4, groups=None)
        optimizers = list(config.optimizer.values())
    if choice == "kl":
        config.model.latent_channels = 2
    if choice == "vq":
        config.model.encoder_channels = 4
        config.model.quantizer.update(num_codes=CODES, features=2)
    if choice == "video":
        config.data.update(feature="video", image_shape=(3, 16, 16, 3))
        config.model.update(name="TemporalAutoencoder", latent_channels=2)
        config.weights.perceptual = 0.0
        config.adversary.r1 = dict(weight=0.0)
        config.adversary.network.groups = 2
    for optimizer in optimizers:
        optimizer.update(schedule="constant", warmup=0, clip_norm=None)
        optimizer.eps = 0.1  # so that no first step of Adam is ±1 where a gradient is about 0
    if choice == "kl":
        config.optimizer.discriminator.warmup = WARMUP
    config.batch_size, config.num_steps = BATCH_SIZE, 100
    config.averages.ema.steps = 2.0
    return config


NARROW = LPIPS(widths=(4, 4, 4, 4, 4))


def narrow_lpips():
    """Variables of `NARROW`, of random numbers."""
    random, images = np.random.default_rng(5), jnp.zeros((1, 16, 16, 3))
    abstract = jax.eval_shape(NARROW.init, jax.random.key(0), images, images)
    draw = lambda a: jnp.asarray(
        np.abs(random.normal(0.1, 0.3, a.shape)) if a.ndim == 1 else random.normal(0, 0.3, a.shape),
        a.dtype,
    )
    return jax.tree.map(draw, abstract)


def make(config):
    """The task, with a narrow LPIPS if it takes any, and what `frozen` would load."""
    task = build(config)
    if not dict(getattr(task, "weights", ())).get("perceptual"):
        return task, ()
    return dataclasses.replace(task, perceptual=NARROW), (narrow_lpips(),)


def batch(config, step: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(step)
    shape = config.batch_size, *config.data.image_shape
    if config.data.feature == "audio":
        return {"audio": random.integers(-(2**14), 2**14, shape, np.int16)}
    return {config.data.get("feature", "image"): random.integers(0, 256, shape, np.uint8)}


def run(choice: str, axes: dict[str, int]) -> list[dict[str, float]]:
    config = small_config(choice)
    task, frozen = make(config)
    mesh, key = make_mesh(axes, BATCH_SIZE), jax.random.key(0)
    state, rows = init_state(task, key, mesh), []
    frozen = place_frozen(SimpleNamespace(frozen=lambda: frozen), mesh)
    with jax.set_mesh(mesh):
        update = compile_update(task, abstract_state(task, key, mesh), mesh, frozen)
        for step in range(STEPS):
            state, metrics = update(state, place_batch(batch(config, step), mesh), key, *frozen)
            rows.append(dict(zip(metrics.names, metrics.table[:, 0].tolist(), strict=True)))
    return rows


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        choice, _, axes = argument.partition("=")
        print(json.dumps(run(choice, json.loads(axes) if axes else {"data": -1})))
