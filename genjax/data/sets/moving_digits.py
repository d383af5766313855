"""Moving handwritten digits: Moving MNIST (Srivastava et al. 2015) with scikit-learn's digits."""

import numpy as np

from genjax.data.dataset import Dataset, InMemory, take

SIZES = {"train": 10_000, "test": 1_000}
NUM_FRAMES = 17  # 1 + 4·4: video autoencoders that keep the first frame take 1 + 4n frames
SIDE, DIGIT_SIDE = 32, 16  # pixels
SPEEDS = (1.0, 3.0)  # pixels a frame, slowest and fastest


def load_moving_digits(split: str) -> Dataset:
    """Return `video`: 17 frames of 32×32 grey levels in which one or two digits move and bounce.

    One and two digits are equally likely. A digit has 16×16 pixels, and starts with a uniformly
    drawn place, direction and speed of 1 to 3 pixels a frame. It moves straight, is reflected at
    the borders, and is shown at the nearest whole pixel. Where two digits overlap, the brighter
    pixel shows. The 10,000 clips of `train` show digits of the split `train` of the set `digits`;
    the 1,000 clips of `test` show those of `test`. A clip depends on its split and index only.

    Raises:
        ValueError: the split is unknown.

    Source: Srivastava et al. 2015, section 4.1, with digits by Alpaydin and Kaynak (1998), each
    pixel doubled along both sides.
    """
    members = {part: lambda part=part: [(part, i) for i in range(SIZES[part])] for part in SIZES}
    chosen = [clip for part in take(split, members) for clip in part]
    digits = _digits()
    videos = np.stack(
        [_clip(digits[part], list(SIZES).index(part), index) for part, index in chosen]
    )
    return Dataset("moving_digits", split, InMemory({"video": videos}))


def _digits() -> dict[str, np.ndarray]:
    """Return by split the digits of `Digits`, doubled in size: bytes `[examples 16 16]`."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8).repeat(2, 1).repeat(2, 2)
    train, test = train_test_split(images, test_size=360, stratify=labels, random_state=0)
    return {"train": train, "test": test}


def _clip(digits: np.ndarray, *seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    video = np.zeros((NUM_FRAMES, SIDE, SIDE, 1), np.uint8)
    room = SIDE - DIGIT_SIDE
    for _ in range(generator.integers(1, 3)):
        digit = digits[generator.integers(len(digits))][..., None]
        start, angle = generator.uniform(0, room, 2), generator.uniform(0, 2 * np.pi)
        velocity = generator.uniform(*SPEEDS) * np.array([np.sin(angle), np.cos(angle)])
        path = start + velocity * np.arange(NUM_FRAMES)[:, None]
        reflected = room - np.abs(room - path % (2 * room))
        for frame, (row, column) in zip(
            video, np.rint(reflected).astype(int).tolist(), strict=True
        ):
            place = frame[row : row + DIGIT_SIDE, column : column + DIGIT_SIDE]
            np.maximum(place, digit, out=place)
    return video
