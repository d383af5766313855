"""Few clips with sound and captions, and the config of sounding digits narrowed for them."""

import numpy as np

from configs import sounding_digits
from genjax.data import Dataset, InMemory

VIDEO, SOUND = (4, 8, 8, 1), (32, 1)
WIDTH = 6  # features of a word


def load(split: str) -> Dataset:
    """Return clips of a square whose grey level is its sound's amplitude, with captions."""
    count = {"train": 16, "test": 4}[split]
    clips, sounds = np.zeros((count, *VIDEO), np.uint8), np.zeros((count, *SOUND), np.int16)
    for i in range(count):
        clips[i, :, 2:6, 2:6] = 100 + 4 * i
        sounds[i, ::2] = 200 * (i + 1)
    source = InMemory({"video": clips, "audio": sounds})
    captions = [(f"a square as bright as {i}",) for i in range(count)]
    return Dataset("squares", split, source, captions=captions)


def words(prompts: list[str]) -> list[dict]:
    """Encode each word as numbers that depend on its letters."""
    rows = []
    for prompt in prompts:
        sums = [sum(map(ord, word)) for word in prompt.split()] or [0]
        tokens = np.sin(np.outer(sums, np.arange(1.0, WIDTH + 1))).astype(np.float32)
        rows.append({"tokens": tokens, "pooled": tokens.mean(0)})
    return rows


def config(folder: str, choice: str = "samples"):
    """Return the narrow config of a choice; encoded prompts are kept in the folder."""
    config = sounding_digits.get_config(choice)
    config.data.update(name=f"{__name__}.load", image_shape=VIDEO, sound_shape=SOUND)
    config.condition.update(directory=folder, encoder="words", prompts=())
    config.condition.update(features=WIDTH, pooled_features=WIDTH, rows=4)
    config.model.update(video_patch=(2, 4, 4), sound_patch=8, video_width=16, sound_width=12)
    config.model.update(depth=1, num_heads=2, unroll=1, frame_rate=4.0, sound_rate=32.0)
    if choice == "samples":
        config.modalities.sound.process = dict(name="VariancePreservingCosine")
    else:  # four spectra of four bands
        config.space.sound.update(n_fft=16, hop=8, num_mels=4, mean=-4.0, deviation=2.0)
        config.model.update(sound_patch=1, sound_rate=4.0)
    config.modalities.sound.weight = 0.5
    config.batch_size = 8
    config.optimizer.warmup = 0.0  # a first step at the full rate
    config.optimizer.eps = 0.1  # so that no first step of Adam is ±1 where a gradient is about 0
    config.averages.ema.steps = 1.0
    config.sampling.update(num_steps=2, every=0)
    config.evaluation.measures = {}
    return config
