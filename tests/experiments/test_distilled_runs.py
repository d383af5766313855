"""Runs of students as a user starts, stops, samples and reads them; and their errors."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import train
from experiments.configuration.runs import build, read_config
from genjax.devices import make_mesh
from genjax.training import Checkpoints, abstract_state
from genjax.training.pictures import read_rows
from tests.experiments import distilled_run
from tests.experiments.distilled_run import student_config, teacher_config
from tests.experiments.launching import ROOT, run
from tests.experiments.random_runs import random_run
from tests.virtual_devices import lines_of

PICTURES = dict(measures=dict(few_step_pictures=dict(name="FewStepPictures")))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return random_run(tmp_path_factory.mktemp("teacher") / "run", teacher_config())


@pytest.fixture(scope="module")
def taught(tmp_path_factory, teacher):
    """A whole run of a method with a schedule, a teacher and averaged targets."""
    folder = tmp_path_factory.mktemp("taught") / "run"
    train.run(student_config("Consistency", teacher, evaluation=PICTURES), folder)
    return folder


def whole_state(workdir, step):
    task, mesh = build(read_config(workdir)), make_mesh({"data": -1}, 1)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.restore(step, abstract_state(task, jax.random.key(0), mesh))


@pytest.mark.slow
def test_a_run_that_stopped_in_the_middle_ends_in_the_same_state(taught, teacher, tmp_path):
    """Without its last checkpoint the run goes on from the one before, bitwise as it would have.

    The method's schedule, its averaged targets, and the order of the data go on, too.
    """
    workdir = shutil.copytree(taught, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints/00000004")
    train.run(student_config("Consistency", teacher, evaluation=PICTURES), workdir)
    jax.tree.map(np.testing.assert_array_equal, whole_state(workdir, 4), whole_state(taught, 4))
    half = whole_state(taught, 2)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), half, whole_state(taught, 4))
    assert any(jax.tree.leaves(moved.params))


@pytest.mark.slow
def test_a_run_without_a_teacher_resumes_likewise(tmp_path):
    config = student_config("MeanFlow")
    train.run(config, tmp_path / "run")
    end = whole_state(tmp_path / "run", 4)
    shutil.rmtree(tmp_path / "run/checkpoints/00000004")
    train.run(config, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, whole_state(tmp_path / "run", 4), end)


@pytest.mark.slow
def test_checkpoints_hold_the_student_alone(taught):
    """Its parameters, two moments and an average of each; of the teacher nothing."""
    state = whole_state(taught, 4)
    size = lambda tree: sum(a.size for a in jax.tree.leaves(tree) if a.size > 1)
    assert size(state) == 4 * size(state.params)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state)]
    assert not any("teacher" in name for name in names)


@pytest.mark.slow
def test_on_eight_devices_it_is_as_on_one(teacher):
    """The frozen teacher is split as the student is, by `fsdp`, and stays as it was."""
    choices = [
        ("Lagrangian", {"data": 8}),
        ("Lagrangian", {"data": 2, "fsdp": 4}),
        ("MeanFlow", {"data": 2, "fsdp": 4}),
        ("DMD2", {"data": 2, "fsdp": 4}),
        ("Drift", {"data": 8}),
    ]
    arguments = [f"{method}={json.dumps(axes)}" for method, axes in choices]
    rows = lines_of("tests.experiments.distilled_run", 8, teacher, *arguments)
    folders = {method: teacher if method in distilled_run.TAUGHT else None for method, _ in choices}
    alone = {name: distilled_run.run(name, {"data": 1}, folders[name]) for name in folders}
    for (method, axes), eight in zip(choices, rows, strict=True):
        one = alone[method]
        assert len(one["losses"]) == 3 and eight["teacher_kept"]
        # Sums over the batch in another order.
        np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-5)
        assert eight["split_otherwise"] == []
        if one["elements_per_device"] and "fsdp" in axes:
            assert eight["elements_per_device"] < 0.5 * one["elements_per_device"]


@pytest.mark.slow
def test_a_run_is_sampled_by_the_command_in_any_number_of_steps(taught, tmp_path):
    """Here in 8 of them; below in 2 and in 1."""
    out = tmp_path / "samples.npz"
    flags = [f"--workdir={taught}", "--num_steps=8", "--count=1", f"--out={out}"]
    result = run("sample", *flags)
    assert result.returncode == 0, result.stderr
    assert "10 samples of step 4: sampler consistency, num steps 8" in result.stdout
    with np.load(out) as samples:
        assert samples["images"].shape == (10, 8, 8, 1)
        assert samples["labels"].tolist() == list(range(10))


@pytest.mark.slow
def test_a_run_is_sampled_by_the_sampler_that_adds_noise_again(taught, tmp_path):
    flags = [f"--workdir={taught}", "--count=1", f"--out={tmp_path}/samples.npz"]
    result = run("sample", *flags, "--sampler=trajectory_consistency,gamma=0.3", "--num_steps=2")
    assert result.returncode == 0, result.stderr
    assert "sampler trajectory_consistency(gamma=0.3), num steps 2" in result.stdout
    result = run("sample", *flags, "--sampler=ddim")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "error: config.sampling.sampler.name is 'ddim'" in result.stderr


@pytest.mark.slow
def test_a_run_is_sampled_without_its_teachers_weights(taught, teacher, tmp_path, monkeypatch):
    """The teacher's config says what the student learned; its checkpoints need not be there."""
    config = json.loads((taught / "config.json").read_text())
    folder = shutil.copytree(teacher, tmp_path / "teacher")
    shutil.rmtree(folder / "checkpoints")
    workdir = shutil.copytree(taught, tmp_path / "run")
    config["config"]["teacher"] = str(folder)
    (workdir / "config.json").write_text(json.dumps(config))
    flags = ["--count=1", "--num_steps=1", f"--out={tmp_path}/a.npz"]
    result = run("sample", f"--workdir={workdir}", *flags)
    assert result.returncode == 0, result.stderr
    assert "10 samples of step 4: sampler consistency, num steps 1" in result.stdout


@pytest.mark.slow
def test_the_report_shows_few_steps_beside_the_teachers_fifty(taught, teacher):
    picture = Image.open(taught / "few_steps/step_000004.png")
    rows = read_rows(picture)
    assert rows == ["1 step", "2 steps", "4 steps", "teacher, 50 steps"]
    page = (taught / "report.html").read_text()
    assert "Few steps" in page and "a column has one label and one noise" in page
    # The last row is what the teacher's own command would draw of the same seed.
    from experiments.configuration.runs import open_run

    theirs = open_run(teacher).sample(np.arange(10), seed=0)
    grid = np.asarray(picture.convert("L"))
    side, zoom = 8, 8  # digits of 8 pixels, enlarged to 64
    height = grid.shape[0] // 4
    left = grid.shape[1] - 10 * (side * zoom + 2)
    last = grid[3 * height + 1 : 3 * height + 1 + side * zoom, left + 1 : left + 1 + side * zoom]
    np.testing.assert_array_equal(last[::zoom, ::zoom], theirs[0, :, :, 0])


def command_line(teacher, *flags, method="Lagrangian"):
    config = f"--config={ROOT}/configs/digits_distillation.py:{method}"
    narrow = dict(patch_size=4, width=64, depth=1, num_heads=2, unroll=1)
    return [
        config,
        f"--config.teacher={teacher}",
        *(f"--config.model.{name}={value}" for name, value in narrow.items()),
        *flags,
    ]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "config.teacher names {absent}, which has no run; train the teacher first"),
        (("--config.data.image_shape=(4,4,1)",), "has the shape (8, 8, 1), the student (4, 4, 1)"),
        (("--config.data.name=fashion_mnist",), "has the data set digits, the student fashion"),
    ],
    ids=["missing", "shape", "data set"],
)
def test_a_teacher_that_does_not_fit_is_one_line_before_any_compute(
    teacher, tmp_path, flags, words
):
    folder = teacher if flags else tmp_path / "absent"
    workdir = tmp_path / "run"
    result = run("train", *command_line(folder, *flags), f"--workdir={workdir}")
    assert result.returncode == 1 and not workdir.exists()
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and words.format(absent=tmp_path / "absent") in line


def test_a_teacher_without_a_checkpoint_is_one_line_too(teacher, tmp_path):
    folder = shutil.copytree(teacher, tmp_path / "teacher")
    shutil.rmtree(folder / "checkpoints")
    result = run("train", *command_line(folder), f"--workdir={tmp_path}/run")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and "has no good checkpoint" in line
