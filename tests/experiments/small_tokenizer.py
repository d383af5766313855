"""A tokenizer with random weights, and models of its codes as small as it is."""

import functools

import jax
import numpy as np

from configs import emoji_tokens
from experiments.configuration import base
from genjax import pretrained
from genjax.data import to_float
from genjax.models.autoencoders.vqgan import VQModel
from genjax.nn.quantizers import VectorQuantizer

VOCABULARY, SIDE = 3, 4  # of codes, and of images in pixels: 2×2 codes


def save(folder):
    """Save a tokenizer in its published form, whose codes are latents of `batch`."""
    quantizer = VectorQuantizer(VOCABULARY, 2)
    network = VQModel(quantizer, 4, (4, 4), blocks=1, groups=2)
    random, images = np.random.default_rng(0), to_float(batch()["image"])
    draw = lambda a: (
        random.standard_normal(a.shape, np.float32)
        / np.sqrt(np.prod(a.shape[:-1]), dtype=np.float32)
    )
    variables = jax.tree.map(draw, jax.eval_shape(network.init, jax.random.key(0), images))
    latents = jax.jit(functools.partial(network.apply, method="encode"))(variables, images)
    latents = np.asarray(latents).reshape(-1, 2)
    rows = np.argsort(latents[:, 0])[[10, 32, 53]]  # of 64 latents
    variables["params"]["quantizer"]["codes"] = latents[rows]
    pretrained.save(folder, network, variables)


def small_config(choice, folder):
    """Return the config of a choice of `emoji_tokens` with a saved tokenizer and few features."""
    config = emoji_tokens.get_config(choice)
    config.data.update(image_shape=(SIDE, SIDE, 3), flip=False)
    config.space = base.tokenizer(published=str(folder))
    config.model.update(width=16, depth=1, num_heads=2, unroll=1)
    config.batch_size = 16
    config.optimizer.update(schedule="constant", warmup=0.0, learning_rate=0.02)
    if "num_steps" in config.sampling:
        config.sampling.num_steps = 3
    return config


def batch(count=16):
    """Return random pictures as bytes, and their classes."""
    images = np.random.default_rng(1).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    return {"image": images, "label": np.arange(count) % 10}
