"""One progress bar for all long work: training, sampling, encoding, evaluating."""

import sys
import time
from collections.abc import Mapping
from typing import ClassVar

import rich.progress

from genjax.training.signals import outliving_readers, say

TERMINAL_SECONDS, LINE_SECONDS = 0.5, 10.0  # from one drawing, or one line, to the next


def losses_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return what a bar shows of a step: the loss, or of several networks the loss of each."""
    if "loss" in metrics:
        return {"loss": metrics["loss"]}
    return {name: value for name, value in metrics.items() if name.startswith("loss/")}


def _short(losses: Mapping[str, float]) -> str:
    """Return losses for a narrow terminal: of several networks by initials, "loss D 0.7 G 1.1"."""
    initials = {name: name.rpartition("/")[2][:1].upper() for name in losses}
    if len(losses) < 2 or len(set(initials.values())) < len(losses):
        return "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
    return "loss " + " ".join(f"{initials[name]} {value:.3f}" for name, value in losses.items())


def _rate(rate: float) -> str:
    """Return a rate with one decimal; slow ones with two digits, since 0.0 says nothing."""
    return f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


class ProgressBar:
    """A bar that shows what is done, how much of it, the rate, losses and the remaining time.

    On a terminal it is a bar. Elsewhere it is a line every ten seconds, and one at the end of
    training. The first update takes long, since it compiles. It shows no rate, and the rate of
    later ones counts from there. Work within other work, such as sampling while a network trains,
    takes the bar's place, and its time does not count in the other's rate.

    Args:
        label: what is being done: "training", "sampling".
        start, total: how many are done at the beginning and at the end.
        unit: what is counted: "steps", "samples".
    """

    _open: ClassVar[list["ProgressBar"]] = []

    def __init__(self, label: str, start: int, total: int, unit: str):
        self._label, self._start, self._total, self._unit = label, start, total, unit
        self._opened = self._began = self._shown = time.monotonic()
        self._losses: Mapping[str, float] = {}
        self._compiled = False
        self._terminal = sys.stderr.isatty()
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn(label),
            rich.progress.BarColumn(bar_width=10),  # leaves room on 80 columns
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn(f"{{task.fields[rate]}} {unit}/s {{task.fields[losses]}}"),
            rich.progress.TextColumn("{task.fields[remaining]} left"),
            console=rich.console.Console(stderr=True),
            auto_refresh=False,  # no thread beside the training steps
            disable=not self._terminal,
            transient=label != "training",
        )
        fields = dict(rate="…", losses="", remaining="…")
        self._task = self._bar.add_task("", total=total, completed=start, **fields)

    def __enter__(self) -> "ProgressBar":
        with outliving_readers(sys.stderr):
            if self._open:
                self._open[-1]._bar.stop()
            self._bar.start()
        self._open.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.remove(self)
        with outliving_readers(sys.stderr):
            self._bar.stop()
            if self._open:
                outer = self._open[-1]
                outer._began += time.monotonic() - self._opened
                outer._bar.start()

    def update(self, done: int, losses: Mapping[str, float] | None = None) -> None:
        """Show how many are done. Redraws twice a second at most, so call it after every step."""
        self._losses = losses or self._losses
        now = time.monotonic()
        rate = (done - self._start) / max(now - self._began, 1e-9)
        shown_rate, remaining = _rate(rate), f"{(self._total - done) / max(rate, 1e-9):.0f} s"
        if not self._compiled:
            if done < self._total:
                shown_rate = remaining = "…"
            self._compiled, self._start, self._began = True, done, now
        ends = done == self._total and (self._terminal or self._label == "training")
        if now - self._shown < (TERMINAL_SECONDS if self._terminal else LINE_SECONDS) and not ends:
            return
        self._shown = now
        if self._terminal:
            fields = dict(rate=shown_rate, losses=_short(self._losses), remaining=remaining)
            with outliving_readers(sys.stderr):
                self._bar.update(self._task, completed=done, refresh=True, **fields)
        else:
            shown = [
                f"{self._label} {done}/{self._total} {self._unit}",
                f"{shown_rate} {self._unit}/s",
            ]
            shown += [f"{name} {value:.4f}" for name, value in self._losses.items()]
            say("  ".join([*shown, f"remaining {remaining}"]), sys.stderr)
