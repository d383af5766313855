"""Text to video in four commands, small: an autoencoder, its latents, a flow on them, samples."""

import json

import pytest
from PIL import Image

from genjax.training.pictures import read_rows
from tests.experiments import small_video
from tests.experiments.launching import ROOT, run

pytestmark = pytest.mark.slow

DATA = [
    "--config.data.name=tests.experiments.small_video.load",
    "--config.data.image_shape=(17,16,16,1)",
]
AUTOENCODER = [
    f"--config={ROOT}/configs/video_autoencoder.py:moving_digits",
    "--config.num_steps=3",
    "--config.model.widths=(4, 4, 4)",
    "--config.optimizer.autoencoder.warmup=0",
    "--config.sampling.per_class=1",
    "--config.evaluation.measures={}",
]
SMALL = [
    "--config.num_steps=4",
    "--config.evaluation.num_samples=4",
    "--config.batch_size=8",
    "--config.optimizer.warmup=0",
    "--config.sampling.num_steps=2",
    "--config.sampling.per_class=1",
    "--config.sampling.every=2",
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.model.num_heads=2",
    "--config.model.unroll=1",
    "--config.log_every=1",
]


def succeed(name, *flags):
    result = run(name, *flags)
    assert result.returncode == 0, result.stderr
    return result


def test_clips_of_prompts_are_drawn_as_strips_and_films(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    workdir = tmp_path / "run"
    config = [
        f"--config={ROOT}/configs/moving_digits_video.py:image_to_video",
        *DATA,
        f"--config.space.run={tmp_path}/autoencoder",
        f"--config.space.directory={tmp_path}/latents",
        "--config.evaluation.measures={'given':{'name':'GivenFrames'}}",
    ]
    succeed("train", *AUTOENCODER, *DATA, f"--workdir={tmp_path}/autoencoder")
    succeed("encode", *config)
    succeed("train", *config, *SMALL, f"--workdir={workdir}")
    report = json.loads((workdir / "report.json").read_text())
    # Samples are decoded after their first frame, so its error is that of the reconstruction.
    error = report["given_frames_error_reconstruction"]
    assert report["given_frames_error"] == pytest.approx(error, rel=0.01) and error > 0
    for name in ("samples.webp", "real.webp", "samples/step_000002.webp"):
        with Image.open(workdir / name) as film:
            assert 1 < film.n_frames <= 17  # WebP makes one of equal frames
    with Image.open(workdir / "samples.png") as sheet:
        assert sheet.height == 8 * 66 and sheet.width > 17 * 66
        captions = [texts[0] for texts in small_video.load("test").captions]
        assert read_rows(sheet) == captions
    assert "Film of sampled clips" in (workdir / "report.html").read_text(encoding="utf-8")
    prompts = ["--prompt=a square moves up", "--prompt=a square moves down", "--count=1"]
    prompts += ["--given=0,-1"]
    succeed("sample", f"--workdir={workdir}", *prompts, f"--out={tmp_path}/drawn.png")
    with Image.open(tmp_path / "drawn.webp") as film:
        assert 1 < film.n_frames <= 17 and film.height == 2 * 66
