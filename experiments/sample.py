"""Sample from a trained run.

    python -m experiments.sample --workdir=runs/digits_flow --classes=3,7 --count=64
    python -m experiments.sample --workdir=runs/emoji_text --prompt="red apple" --prompt="blue car"

Writes a PNG with a row per class or prompt. Clips also get a film beside it, and sounds a WAV.
The suffix of --out chooses what is written:

    FILE.npz          the arrays `images`, in the type of the data, and `labels`
    FILE.mp4, .webm   clips as a film; clips with sound one after another (needs PyAV)
    FILE.wav          sounds one after another

Flags left out take the run's own values.
"""

from pathlib import Path

import numpy as np
from absl import flags

from experiments.configuration.runs import open_run
from experiments.launch import sampling_flags
from experiments.launch.runtime import check_out, run_program, user_errors
from experiments.launch.sampling import (
    SUFFIXES,
    check_file,
    save_samples,
    shown_labels,
    without_repetitions,
)
from experiments.launch.sampling_flags import sampling_changes
from genjax.pipelines.runs import labels_of_classes
from genjax.training.workdir import read_record

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
OUT = flags.DEFINE_string(
    "out",
    None,
    "File to write, .png, .npz, .wav, .mp4 or .webm; WORKDIR/samples_of_step.png if not given.",
)
STEP = flags.DEFINE_integer("step", None, "Checkpoint to use; the newest good one if not given.")
CLASSES = flags.DEFINE_list(
    "classes",
    None,
    "Numbers or names of classes, separated by commas; if not given all, of many some.",
)
PROMPT = flags.DEFINE_multi_string(
    "prompt", None, "What to show, of a text-to-image run; may be repeated."
)
SIZE = flags.DEFINE_string(
    "size",
    None,
    "HEIGHTxWIDTH of what a transformer makes, if not what it was trained at: 768x1344.",
)
COUNT = flags.DEFINE_integer(
    "count",
    None,
    "Samples per class or prompt, 10 if not given; in all, of a run without classes and prompts.",
    lower_bound=1,
)
flags.adopt_module_key_flags(sampling_flags)
PER_ROW = 10  # pictures, where --count does not say it


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Return height and width; raise ValueError if the text is not HEIGHTxWIDTH."""
    if text is None:
        return None
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise ValueError(f"--size={text} must be HEIGHTxWIDTH in pixels, as 768x1344")
    return int(sides[0]), int(sides[1])


def main() -> None:
    with user_errors():
        out = Path(OUT.value or Path(WORKDIR.value) / "samples_of_step.png")
        if out.suffix not in SUFFIXES:
            raise ValueError(
                f"--out={out} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
            )
        size = parse_size(SIZE.value)
        run = open_run(WORKDIR.value, STEP.value, size, **sampling_changes(), prompts=PROMPT.value)
        check_out(out)
        run.check_guidance()
        with_sound = isinstance(run.task.space.shape, dict)
        check_file(out, run.config.data.get("feature", "image"), with_sound)
        class_names = read_record(WORKDIR.value).get("class_names")
        num_rows = run.task.condition.num_rows
        names = run.task.condition.row_names(class_names)
        rows = shown_labels(num_rows)  # all, or some of many
        if CLASSES.value:
            if not names:
                raise ValueError(
                    f"--classes={','.join(CLASSES.value)}, but this run has no classes to choose "
                    "from: leave it out"
                )
            rows = labels_of_classes("--classes", CLASSES.value, num_rows, class_names)
        elif PROMPT.value:
            rows = np.arange(num_rows)
        if COUNT.value and not names:
            count = min(COUNT.value, getattr(run.task, "num_originals", COUNT.value))
            labels, per_row = np.zeros(count, np.int32), min(count, PER_ROW)
        else:
            per_row = COUNT.value or PER_ROW
            labels = np.repeat(rows.astype(np.int32), per_row)
            labels, per_row = without_repetitions(run.task, labels, per_row)
        samples = run.sample(labels)
        save_samples(out, run.task.space, samples, labels, per_row, names)
    sampling = run.config.sampling
    how = run.task.describe_sampling(sampling) | {
        name: sampling[name] for name in ("weights", "seed")
    }
    print(
        f"{len(labels)} samples of step {run.step}: "
        + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in how.items())
        + f"\n  {out}"
    )


if __name__ == "__main__":
    run_program(main)
