"""Measure how much the choices of an evaluation protocol change a Fréchet distance.

    python -m experiments.protocols --data=fashion_mnist --side=16 --num_images=500 --out=a.json

Training images stand for samples, and held-out images are the reference. Features are VGG16's of
images of `--side` pixels. Each choice is made for the samples alone, as when two programs are
compared, and for both sets. The last line has distances by the number of images, in pixels averaged
to 8×8, and their extrapolation to infinitely many.
"""

import json
import time
from pathlib import Path

from absl import flags

from experiments.evaluation import protocol_choices as choices
from experiments.evaluation.autoencoders import vgg16_protocol
from experiments.launch.runtime import check_out, run_program, user_errors
from genjax.training.workdir import device_name

DATA = flags.DEFINE_string("data", "fashion_mnist", "A data set of images, of genjax.data.sets.")
SIDE = flags.DEFINE_integer("side", 32, "Pixels a side that images are resized to.", lower_bound=16)
NUM_IMAGES = flags.DEFINE_integer("num_images", 500, "Of each set, for the choices.", lower_bound=2)
MOST = flags.DEFINE_integer("most", 10_000, "Of each set, for the numbers of images.")
OUT = flags.DEFINE_string("out", None, "JSON file to write.", required=True)


def main() -> None:
    began = time.perf_counter()
    with user_errors():
        check_out(OUT.value)
        samples, reference = (choices.images_of(DATA.value, split) for split in ("train", "test"))
        few = samples[: NUM_IMAGES.value], reference[: NUM_IMAGES.value]
        rows = choices.measure_choices(*few, SIDE.value, choices.vgg16())
        counted = choices.measure_counts(samples[: MOST.value], reference[: MOST.value])
        report = dict(data=DATA.value, image_shape=few[0].shape[1:], side=SIDE.value)
        report |= dict(num_images=list(map(len, few)), choices=rows, counts=counted)
        report |= dict(parameters_sha256=vgg16_protocol()["vgg16"].parameters_sha256)
        report |= dict(device=device_name(), seconds=round(time.perf_counter() - began, 1))
        Path(OUT.value).write_text(json.dumps(report, indent=2) + "\n")
    print(choices.markdown(rows))
    print(" | ".join(f"{name}: {value:.4g}" for name, value in counted.items()))


if __name__ == "__main__":
    run_program(main)
