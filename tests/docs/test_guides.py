"""Guides run as they are written, from top to bottom: Python as it stands, commands for a few steps."""

import importlib
import re
import sys

import numpy as np
import pytest

from tests.docs.pages import ROOT, blocks, commands
from tests.experiments import launching
from tests.experiments.launching import run

GUIDES = ("own_images", "own_network", "own_data", "own_algorithm", "edm", "fine_tuning")
SHORT = [
    "--config.num_steps=2",
    "--config.batch_size=8",
    "--config.log_every=1",
    "--config.checkpoint.every=2",
    "--config.sampling.every=2",
    "--config.sampling.per_class=2",
    "--config.evaluation.num_samples=20",
]
SHORT_OF = {
    "gan": ["--config.snapshot_every=2", "--config.evaluation.every=2"],
    "autoencoder": [
        f"--config.optimizer.{player}.warmup=0" for player in ("autoencoder", "discriminator")
    ],
    "flow": ["--config.optimizer.warmup=0", "--config.sampling.num_steps=2"],
}
SMALL_DIT = [
    "--config.model.width=32",
    "--config.model.depth=1",
    "--config.model.unroll=1",
    "--config.model.num_heads=2",
]
NOT_RUN = ("SYSTEM/", "imagenet", "text_to_image")  # need published weights or an accelerator


def shortened(command: list[str]) -> list[str]:
    """Return a command with flags that make it take seconds."""
    if command[0] == "sample":
        return [*command, "--count=1"]
    if command[0] != "train":
        return command
    config = next(each for each in command if each.startswith("--config="))
    family = next((name for name in ("gan", "autoencoder") if name in config), "flow")
    own_network = any(each.startswith("--config.model.name") for each in command)
    adapted = any(each.startswith("--config.adapters") for each in command)
    small = SMALL_DIT if family == "flow" and not own_network and not adapted else []
    return [*command, *SHORT, *SHORT_OF[family], *small]


@pytest.mark.training
@pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")
@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_runs_as_written(guide, tmp_path, monkeypatch):
    """A block that begins with the name of a file is that file."""
    for folder in ("configs", "genjax", "experiments"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.setattr(launching, "ROOT", tmp_path)  # where commands run
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names, written = {}, []
    for block in blocks(ROOT / f"docs/guides/{guide}.md", "python", "sh"):
        if block.language == "sh":
            for command in commands(block.text):
                if not any(name in " ".join(command) for name in NOT_RUN):
                    result = run(*shortened(command))
                    assert result.returncode == 0, (command, result.stderr)
        elif path := re.match(r"# (\w+)\.py\n", block.text):
            (tmp_path / f"{path[1]}.py").write_text(block.text)
            importlib.invalidate_caches()
            written.append(path[1])
        else:
            exec(compile(block.text, f"{guide}.md", "exec"), names)
    for module in written:
        sys.modules.pop(module, None)
    check = CHECKS.get(guide)
    if check:
        check(names, tmp_path)


def check_edm(names, folder):
    """The deviations are those of the data up to what 4,000 samples and a small network leave."""
    assert abs(names["with_edm"] - np.array([2.0, 1.0])).max() < 0.15


def check_network(names, folder):
    assert names["losses"].shape == (4,)


CHECKS = {"own_network": check_network, "edm": check_edm}
