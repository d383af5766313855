"""Few captioned clips, and an autoencoder of video that needs no training: means over blocks."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

from experiments.inputs import autoencoders
from genjax.data import Dataset, InMemory
from genjax.data.dataset import OnDisk

DIRECTIONS = ("up", "right", "down", "left")


def load(split: str) -> Dataset:
    """Return clips of 17 frames of 16×16 in which a square moves, with captions."""
    count = {"train": 24, "test": 8}[split]
    clips = np.zeros((count, 17, 16, 16, 1), np.uint8)
    for i, clip in enumerate(clips):
        row, column = [(-1, 0), (0, 1), (1, 0), (0, -1)][i % 4]
        for t, frame in enumerate(clip):
            frame[6:10, 6:10] = 100 + i
            clip[t] = np.roll(frame, (t // 2 * row, t // 2 * column), (0, 1))
    captions = [(f"a square moves {DIRECTIONS[i % 4]}",) for i in range(count)]
    return Dataset("squares", split, InMemory({"video": clips}), captions=captions)


def load_varied(split: str) -> Dataset:
    """Return captioned clips of 18, 7 or 2 frames, half of them wide."""
    shapes = [(frames, *size, 1) for frames in (18, 7, 2) for size in ((20, 20), (12, 40))]
    if split == "test":
        shapes = shapes[:2]
    records = [{"video": np.full(shape, 50, np.uint8)} for shape in shapes * 4]
    source = OnDisk(records, {"video": np.dtype(np.uint8)})
    captions = [(f"a {'wide' if r['video'].shape[2] > 20 else 'square'} clip",) for r in records]
    return Dataset("varied", split, source, (None, None, None, 1), captions=captions)


class BlockMeans(nn.Module):
    """Latents are means over 4 frames (the first frame alone) and 2×2 pixels; 4 of them a place."""

    factor = 4
    latent_mean = (0.0, 0.25, 0.5, 0.75)
    latent_deviation = (1.0, 2.0, 1.0, 0.5)

    @nn.compact
    def __call__(self, video):
        return self.encode(video)

    def encode(self, video):
        pixels = rearrange(
            video, "b t (h i a) (w j c) 1 -> b t h w (i j) (a c)", a=2, c=2, i=2, j=2
        )
        places = pixels.mean(-1)
        later = rearrange(places[:, 1:], "b (t n) h w k -> b t n h w k", n=4).mean(2)
        return jnp.concatenate([places[:, :1], later], axis=1)

    def decode(self, latents):
        pixels = repeat(latents, "b t h w (i j) -> b t (h i a) (w j c) 1", a=2, c=2, i=2, j=2)
        return jnp.concatenate([pixels[:, :1], jnp.repeat(pixels[:, 1:], 4, axis=1)], axis=1)


def use_block_means(monkeypatch) -> None:
    """Let the published folder "block_means" hold this autoencoder."""
    monkeypatch.setattr(autoencoders, "_published", lambda folder: (BlockMeans(), {}))


def narrow(config, folder: str | None = None):
    """Return a config of video on the squares' latents, with a network of a few features."""
    config.data.update(name=f"{__name__}.load", image_shape=(17, 16, 16, 1))
    config.space = dict(name="Latents", published="block_means", directory=folder)
    for name in ("digits", "distance"):  # whose tracker knows no squares, and VGG16's weights
        if name in config.evaluation.measures:
            del config.evaluation.measures[name]
    config.batch_size = 4
    config.model.update(width=16, depth=1, num_heads=2, unroll=1)
    config.optimizer.warmup = 0.0  # a first step at the full rate
    config.averages.ema.steps = 1.0
    config.sampling.update(num_steps=2, per_class=1, every=0)
    return config
