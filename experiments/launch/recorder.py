"""What a run leaves behind while it trains: snapshots, pictures, figures and the report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from experiments.evaluation.context import Model
from experiments.evaluation.figures import BETTER
from experiments.launch.experiment import Experiment, Measure, split_pictures
from experiments.launch.findings import Findings
from experiments.launch.reports import alarms, training_summary
from experiments.launch.sampling import (
    draw_sheet,
    save_real,
    save_sheet,
    sheet_labels,
    without_repetitions,
)
from genjax.training import Plugin, Snapshots
from genjax.training.pictures import save_animation, save_curves, save_picture
from genjax.training.progress import ProgressBar
from genjax.training.sampling import add_posthoc, power_averages, sample
from genjax.unfinished import unfinished


class Recorder:
    """Records the state while an experiment trains: snapshots, pictures, measures.

    Attributes:
        reports: by step, what the measures found.
    """

    def __init__(
        self, experiment: Experiment, workdir: Path, class_names: Sequence[str] | None = None
    ):
        self.experiment, self.workdir = experiment, workdir
        self.task, self.sampling = experiment.task, experiment.config.sampling
        per_class = self.sampling.per_class
        labels = sheet_labels(self.task.condition.num_rows, per_class)
        self.labels, self.per_row = without_repetitions(self.task, labels, per_class)
        self.row_names = self.task.condition.row_names(class_names)
        self.snapshots = Snapshots(workdir / "ema")
        self.reports: dict[int, dict[str, Any]] = {}
        self.findings = Findings(workdir / "findings.json", experiment.config)
        self._model: tuple[int, Model] | None = None
        self._film: list[Any] | None = None  # what `film` found after the last step
        self._unmeasured = {each.name for each in experiment.measures if each.every}
        self._given = {"steps_per_second"}  # figures that measures gave, or that training logs
        (workdir / "samples").mkdir(exist_ok=True)

    def plugins(self) -> list[Plugin]:
        """Return the plugins of the training loop, in the order in which they run."""
        config, snapshot = self.experiment.config, self.save_snapshot
        plugins = [
            Plugin(config.snapshot_every, snapshot, self.begin_snapshots, "snapshot"),
            Plugin(config.checkpoint.every, self.look_for_alarms, name="alarms"),
            Plugin(self.sampling.every, self.draw_samples, name="samples"),
            *(
                Plugin(
                    measure.every,
                    lambda state, step, measure=measure: self.measure(measure, state, step),
                    name=f"measure {measure.name}",
                )
                for measure in self.experiment.measures
            ),
            Plugin(config.num_steps, lambda state, step: None, self.begin, "beginning"),
        ]
        return [plugin for plugin in plugins if plugin.every]

    def begin(self, state: Any, step: int) -> None:
        """Forget what an earlier run in this folder found, unless this one is finished."""
        if jax.process_index() != 0:
            return
        if step == self.experiment.config.num_steps:
            print(
                f"this run is finished: all {step} steps are done; python -m experiments.evaluate "
                f"--workdir={self.workdir} measures it again",
                flush=True,
            )
            return
        self.findings.forget()
        if step:
            print(f"resumed from step {step} of {self.experiment.config.num_steps}", flush=True)

    def begin_snapshots(self, state: Any, step: int) -> None:
        every = self.experiment.config.snapshot_every
        self.snapshots.go_on(step, every, power_averages(self.task, state))

    def save_snapshot(self, state: Any, step: int) -> None:
        self.snapshots.save(step, power_averages(self.task, state))

    def look_for_alarms(self, state: Any, step: int) -> None:
        """Print what is going wrong by the metrics; a run may measure nothing before its end."""
        if jax.process_index() == 0:
            self._report(step, {})

    def weighted(self, state: Any) -> Any:
        """Return the state with the average that sampling reads."""
        return add_posthoc(self.task, state, self.sampling.weights, self.snapshots)

    def save_samples(self, path: Path, samples: np.ndarray) -> Image.Image:
        """Save and return a sheet with a row of samples for each label, and the label's name."""
        space, names = self.task.space, self.row_names
        return save_sheet(path, space, samples, self.labels, self.per_row, names)

    def draw_real(self) -> None:
        """Save a sheet of real examples, once, if the measures read them anyway."""
        path = self.workdir / "real.png"
        if self.experiment.measures and not path.exists():
            condition, data = self.task.condition, self.experiment.data
            real = condition.real_examples(data, self.labels, self.row_names)
            with unfinished(path) as part:
                save_real(part, self.task.space, real, self.labels, self.per_row)

    def draw_samples(self, state: Any, step: int) -> dict[str, Any] | None:
        """Save a sheet of samples and the curves until now; return the sheet to log."""
        if step == self.experiment.config.num_steps:
            samples = self.film(state)[-1]
        else:
            samples = sample(self.task, self.weighted(state), self.labels, self.sampling)
        if jax.process_index() != 0:
            return None
        sheet = self.save_samples(self.workdir / f"samples/step_{step:06d}.png", samples)
        self.draw_real()
        save_curves(self.workdir / "curves.png", self.workdir / "metrics.jsonl")
        return {"samples": sheet}

    def measure(self, measure: Measure, state: Any, step: int) -> dict[str, Any]:
        """Evaluate, save the pictures, print alarms, and return figures and pictures to log."""
        if self._model is None or self._model[0] != step:  # measures of one step share samples
            self._model = step, self.experiment.model(self.weighted(state))
        figures, drawn = split_pictures(measure(self._model[1]))
        films = {name: each for name, each in drawn.items() if isinstance(each, list)}
        pictures = {name: each for name, each in drawn.items() if name not in films}
        if jax.process_index() != 0:
            return {}
        for name, picture in pictures.items():
            (self.workdir / name).mkdir(exist_ok=True)
            save_picture(self.workdir / name / f"step_{step:06d}.png", picture)
        for name, frames in films.items():  # of the last measurement alone
            save_animation(self.workdir / f"{name}.gif", frames, hold=60)
        self._report(step, figures)
        self._check_best(step, measure.name, figures)
        self.findings.add(step, measure.name, figures)
        return {
            name: value for name, value in figures.items() if name in BETTER or "/" in name
        } | pictures

    def _check_best(self, step: int, name: str, figures: dict[str, Any]) -> None:
        """Once all measures that are made while training were made, say if none gives the best."""
        if name not in self._unmeasured:
            return
        self._unmeasured.remove(name)
        self._given |= figures.keys()
        best = self.experiment.config.checkpoint.get("keep_best")
        if best and not self._unmeasured and best not in self._given:
            print(
                f"ALARM at step {step}: config.checkpoint.keep_best is {best!r}, which no measure "
                "gives while the run trains, so no best checkpoint is kept; measures give "
                f"{', '.join(sorted(self._given & BETTER.keys()))}",
                flush=True,
            )

    def _report(self, step: int, figures: dict[str, Any]) -> None:
        """Add figures to the report of a step; print new alarms."""
        report = self.reports.setdefault(step, {})
        printed = report.get("alarms", [])
        report |= figures
        report["alarms"] = alarms(self.task, report, self.workdir, step)
        for sentence in report["alarms"]:
            if sentence not in printed:
                print(f"ALARM at step {step}: {sentence}", flush=True)

    def finish(self, state: Any, step: int) -> dict[str, Any]:
        """Evaluate what is not evaluated yet, save the last pictures, and return the report."""
        found = [self.findings.find(step, measure.name) for measure in self.experiment.measures]
        drawn = self.findings.find(step, "samples.png")
        if None in [*found, drawn]:
            kept = "all steps are saved, and after a stop the same command goes on from here"
            print(f"sampling and evaluating ({kept})", flush=True)
        with ProgressBar("evaluating", 0, len(found), "measures") as progress:
            for done, measure in enumerate(self.experiment.measures):
                if found[done] is None:
                    self.measure(measure, state, step)
                else:
                    self._report(step, found[done])
                progress.update(done + 1)
        self._model = None
        if drawn is None:
            self.draw_last(state, step)
        if jax.process_index() != 0:
            return {}
        name = self.experiment.config.experiment
        report = training_summary(self.workdir, name, step) | self.reports.get(step, {})
        (self.workdir / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        return report

    def film(self, state: Any) -> list[Any]:
        """Return the film of the last state's samples, which is drawn once for all pictures."""
        if self._film is None:
            frames = sample(
                self.task, self.weighted(state), self.labels, self.sampling, trajectory=True
            )
            count = len(jax.tree.leaves(frames)[0])
            self._film = [jax.tree.map(lambda a, i=i: a[i], frames) for i in range(count)]
        return self._film

    def draw_last(self, state: Any, step: int) -> None:
        """Save samples, their film, and the curves."""
        states = self.film(state)
        if jax.process_index() != 0:
            return
        self.save_samples(self.workdir / "samples.png", states[-1])
        self.draw_real()
        if not self.sampling.every:
            save_curves(self.workdir / "curves.png", self.workdir / "metrics.jsonl")
        sheet = self.labels, self.per_row, self.row_names
        film = [draw_sheet(self.task.space, each, *sheet) for each in states]
        save_animation(self.workdir / self.task.animation, film)
        self.findings.add(step, "samples.png", {})
