"""What every program does first and last."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.__main__ import main
from experiments.launch.runtime import check_out, memory_errors, user_errors
from tests.experiments.launching import ROOT, SMALL, run, run_alone

COMMANDS = (
    "train sample evaluate encode latents likelihood sweep report compare plan benchmark "
    "loop_overhead peers tpu_bounds"
)


@pytest.mark.parametrize("name", COMMANDS.split())
def test_help_explains_every_flag(name):
    result = run(name, "--help")
    own = [line for line in result.stdout.splitlines() if line.startswith("  --")]
    assert own and all(len(line.split(":", 1)[1].strip()) > 5 for line in own), result.stdout
    assert f"python -m experiments.{name}" in result.stdout and result.returncode == 0


def flags_in_help(name):
    """Return the names of the flags that --help explains, with what it says."""
    text = run(name, "--help").stdout.partition("\nflags:\n")[2]
    return dict(re.findall(r"^  --(?:\[no\])?(\w+): (.*)", text, re.MULTILINE))


PROCESSES = {"coordinator", "num_processes", "process_id", "join_seconds"}


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("train", {"config", "workdir", "init_from"} | PROCESSES),
        ("encode", {"config"} | PROCESSES),
        (
            "latents",
            {"workdir", "step", "count", "inversion_steps", "pairs"}
            | {"truncation", "weights", "seed"},
        ),
        (
            "sweep",
            {"samplers", "grid", "steps", "widths", "scales", "intervals", "vgg16"}
            | {"num_samples", "out"},
        ),
    ],
)
def test_help_names_the_flags_that_the_command_uses(name, flags):
    assert flags_in_help(name).keys() == flags


@pytest.mark.parametrize(
    ("name", "required"),
    [
        ("train", {"config", "workdir"}),
        ("sweep", {"out"}),
        ("sample", {"workdir"}),
        ("plan", {"config", "mesh", "device"}),
        ("compare", set()),
    ],
)
def test_help_marks_required_flags_and_an_error_names_them(name, required):
    marked = {name for name, text in flags_in_help(name).items() if text.startswith("Required. ")}
    assert marked == required
    if required:
        result = run(name)
        missing = re.fullmatch(r"error: --(\w+) is missing\. Required\. .+\n", result.stderr)
        assert missing and missing[1] in required and result.returncode == 1, result.stderr


def test_a_damaged_image_is_a_warning_without_the_place_in_the_code(tmp_path):
    colours = np.arange(3 * 100, dtype=np.uint8).reshape(100, 1, 1, 3)
    for index, colour in enumerate(colours):
        Image.fromarray(colour.repeat(32, 0).repeat(32, 1)).save(tmp_path / f"{index}.png")
    (tmp_path / "damaged.png").write_text("")
    flags = ["--config.data.name=folder", f"--config.data.directory={tmp_path}"]
    result = run_alone(
        "train", "--config=configs/emoji_flow.py", f"--workdir={tmp_path / 'run'}", *flags
    )
    assert "error: folder (train) has no classes" in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "skipped 1" in line]
    assert re.match(r"warning: folder \(\w+\): skipped 1 of \d+ files: damaged\.png", line)


@pytest.mark.parametrize("overrides", [[], ["--config.num_steps=100"]])
def test_a_missing_config_file_is_named_in_full(tmp_path, overrides):
    flags = "--config=configs/digit_flow.py", f"--workdir={tmp_path / 'run'}"
    result = run("train", *flags, *overrides)
    path, nearest = ROOT / "configs/digit_flow.py", ROOT / "configs/digits_flow.py"
    message = f"error: --config names {path}, and there is no such file; did you mean {nearest}?\n"
    assert (result.returncode, result.stderr) == (1, message)


def test_too_little_memory_ends_with_advice(monkeypatch):
    """A petabyte is more than any device has. Other faults keep their traceback."""
    take_it_all = lambda _: jnp.zeros(2**48).block_until_ready()
    monkeypatch.setattr("experiments.pages.report.write_report", take_it_all)
    first, second = run("report", "--workdir=runs/any").stderr.splitlines()
    assert first.startswith("error: RESOURCE_EXHAUSTED: Out of memory") and "batch_size" in second
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: another fault")


def test_a_fault_of_code_keeps_its_traceback():
    with pytest.raises(SystemExit, match="^error: config.seed is -1$"), user_errors():
        raise ValueError(
            "config.seed is -1",
        )
    with pytest.raises(ValueError, match="unpack"), user_errors():
        _, _ = [0]


def test_a_process_with_too_little_memory_waits_for_no_other(monkeypatch, capsys):
    """An orderly exit would wait for the others, which wait for a collective with this one."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as end, memory_errors():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    assert end.value.code == 1 and "error: RESOURCE_EXHAUSTED" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["digits_flow", "digits_flow.py", "config/digits_flow.py"])
def test_a_config_file_without_its_folder_is_found_in_configs(tmp_path, given):
    result = run("train", f"--config={given}", f"--workdir={tmp_path / 'run'}")
    assert result.stderr.endswith(f"did you mean {ROOT / 'configs/digits_flow.py'}?\n")
    assert result.returncode == 1 and str(ROOT / given) in result.stderr


def test_an_empty_name_of_a_config_file_is_named(tmp_path):
    result = run("train", "--config=", f"--workdir={tmp_path / 'run'}")
    assert result.stderr.startswith("error: ") and "there is no such file" in result.stderr


@pytest.mark.parametrize("text", ["x = 1", "def get_config():\n    return dict(num_steps=3)"])
def test_a_config_file_that_gives_no_config_is_told_what_to_give(tmp_path, text):
    (tmp_path / "mine.py").write_text(text)
    result = run("train", f"--config={tmp_path}/mine.py", f"--workdir={tmp_path / 'run'}")
    words = "needs a function get_config that returns a ml_collections.ConfigDict"
    assert result.stderr.startswith(f"error: --config names {tmp_path}/mine.py, which {words}")


def test_a_choice_of_a_config_that_has_none_is_an_error_of_one_line(tmp_path):
    config = "configs/digits_flow.py:big"
    result = run("train", f"--config={config}", f"--workdir={tmp_path / 'run'}")
    words = "this config has no choices, so leave out :big"
    assert result.stderr == f"error: flag --config={config}: {words}\n"


OWN = """from experiments.configuration import base


def get_config():
    c = base.diffusion("mine", name="digits", image_shape=(8, 8, 1))
    c.model.update(patch_size=2, width=32, depth=1, num_heads=2)
    c.num_steps, c.evaluation.measures = 2, {}  # cheap, if nothing refuses it
    LINE
    return c
"""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("c.batch_size = '64'", "batch_size must be an integer"),
        ("c.num_steps = 5.5", "num_steps must be an integer"),
        ("c.data.flip = 'no'", "flip must be True or False"),
        ("c.model = 'DiT'", "model has fields of its own, so set those, as model.name"),
        ("c.mesh = 8", "mesh has fields of its own, so set those"),
        (
            "c.evaluation.meassures.x = 'Samples'",
            "there is no field 'meassures'; Did you mean",
        ),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("int('many')", "ValueError: invalid literal for int() with base 10: 'many'"),
        ("from . import other", "ImportError: attempted relative import with no known parent"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'; start "),
        ("def f(:", "SyntaxError: invalid syntax"),
    ],
)
def test_a_fault_of_a_config_file_is_one_line_with_its_place(tmp_path, line, words):
    (tmp_path / "mine.py").write_text(OWN.replace("LINE", line))
    result = run("train", f"--config={tmp_path}/mine.py", f"--workdir={tmp_path / 'run'}")
    assert result.stderr.startswith(f"error: {tmp_path}/mine.py, line 8: {line}: {words}")
    assert result.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("raise ValueError('the choices are a, b')", "the choices are a, b"),
        (
            "c.num_step = 5",
            "config.num_step is 5 in FILE, and there is no such field; did ",
        ),
        ("c.optimizer = None", "config.optimizer is None in FILE; it has fields of its own"),
        ("del c.num_steps", "the config has no field 'num_steps': add it, or start from a"),
        ("del c.sampling", "config.task is 'Diffusion', which "),
        ("return", "--config names FILE, which needs a function get_config that returns a "),
        ("c.evaluation.measures.x = 5", "config.evaluation.measures.x is 5, and a part"),
        ("c.averages.x = 5", "config.averages.x is 5, and a part has a name and arguments: set "),
        ("c.data.image_shape = ('8', 8, 1)", "config.data.image_shape is '8',8,1; for config."),
    ],
)
def test_a_config_of_ones_own_with_a_mistake_is_one_line(tmp_path, line, words):
    (tmp_path / "mine.py").write_text(OWN.replace("LINE", line))
    result = run("train", f"--config={tmp_path}/mine.py", f"--workdir={tmp_path / 'run'}")
    words = words.replace("FILE", f"{tmp_path}/mine.py")
    error = result.stderr.removeprefix("WARNING:absl:").partition("error: ")[2]
    assert error.startswith(words) and error.count("\n") == 1, result.stderr
    assert not (tmp_path / "run/config.json").exists()


def test_a_missing_choice_is_named(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config(choice):\n    pass\n")
    result = run("train", f"--config={tmp_path}/mine.py", f"--workdir={tmp_path / 'run'}")
    assert result.stderr.endswith(
        f"needs one of its choices, as --config={tmp_path}/mine.py:CHOICE\n"
    )


@pytest.mark.parametrize(
    ("flag", "field"),
    [("num_steps", "num_steps"), ("learning_rate", "optimizer.learning_rate"), ("lr", None)],
)
def test_a_field_of_the_config_given_as_a_flag_is_answered_with_the_flag(tmp_path, flag, field):
    flags = "--config=configs/digits_flow.py", f"--workdir={tmp_path / 'run'}"
    result = run("train", *flags, f"--{flag}=3")
    known = f"there is no flag --{flag}; did you mean --config.{field}?"
    words = known if field else f"Unknown command line flag '{flag}'"
    assert result.stderr == f"error: {words}\nSee --help.\n"


def test_a_field_of_the_config_of_a_run_is_answered_with_the_flag():
    result = run("sample", "--workdir=runs/any", "--config.sampling.num_steps=3")
    words = "there is no flag --config.sampling.num_steps; did you mean --num_steps?"
    assert result.stderr == f"error: {words}\nSee --help.\n"


def test_a_misspelt_command_is_answered_with_the_nearest(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["genjax", "tarin", "--config=x"])
    monkeypatch.setattr("experiments.end_at_ctrl_c", lambda: None)  # it would outlive this test
    with pytest.raises(SystemExit, match="'tarin' is none of the commands; did you mean train?"):
        main()
    assert capsys.readouterr().out.startswith("usage: genjax COMMAND [FLAGS]\n")


@pytest.mark.parametrize(
    ("flag", "words"), [("batch_size", "an integer"), ("sampling.guidance_scale", "a number")]
)
def test_a_word_in_place_of_a_number_is_named(tmp_path, flag, words):
    flags = "--config=configs/digits_flow.py", f"--workdir={tmp_path / 'run'}"
    result = run("train", *flags, f"--config.{flag}=many")
    message = f"error: flag --config.{flag}=many: it must be {words}\nSee --help.\n"
    assert (result.returncode, result.stderr) == (1, message)


def test_a_file_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    check_out(None)
    check_out(tmp_path / "report.json")
    (tmp_path / "report.json").write_text("{}")
    check_out(tmp_path / "report.json")
    with pytest.raises(FileNotFoundError, match="needs the folder"):
        check_out(tmp_path / "absent/report.json")
    with pytest.raises(IsADirectoryError, match="is a folder, and a file"):
        check_out(tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(PermissionError, match=r"report.json cannot be written"):
        check_out(tmp_path / "report.json")


@pytest.mark.parametrize("command", ["evaluate", "likelihood", "sample"])
def test_a_run_that_cannot_be_written_to_is_said_before_any_compute(command, small_run, tmp_path):
    """The file that a command writes into a run if it is given no other is a folder there."""
    workdir = shutil.copytree(small_run[0], tmp_path / "run")
    for name in ("report.json", "likelihood.json", "samples_of_step.png"):
        (workdir / name).unlink(missing_ok=True)
        (workdir / name).mkdir()
    result = run(command, f"--workdir={workdir}")
    assert result.returncode == 1 and "is a folder, and a file" in result.stderr
    assert "sampling" not in result.stderr and "evaluating" not in result.stderr


def test_ctrl_c_ends_without_a_traceback_even_while_modules_are_imported():
    command = [sys.executable, "-X", "importtime", "-m", "experiments.train", "--help"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # A page of output at most, so that the program is not far ahead of what is read here.
    # Shells let what they start in the background ignore Ctrl-C, and its programs inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=ROOT, pipesize=4096, **pipes)
    signal.signal(signal.SIGINT, before)
    while "jax._src" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGINT and "Traceback" not in errors


def test_a_process_alone_ends_with_one_message(tmp_path):
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]  # free once it is closed
    flags = [
        f"--coordinator=localhost:{port}",
        "--num_processes=2",
        "--process_id=1",
        "--join_seconds=1",
    ]
    result = run_alone("train", *SMALL, f"--workdir={tmp_path}", *flags)
    assert result.returncode == 1
    message = result.stderr.partition("error: not all processes have met within 1 seconds: ")[2]
    first, second = message.splitlines()[:2]
    assert first.startswith("this is process 1 of 2") and "Traceback" not in result.stderr
    assert f"localhost:{port}" in first and "--join_seconds" in second


FAULTS = """
import resource
from experiments.launch.runtime import keep_heap
keep_heap()
import jax, jax.numpy as jnp, numpy as np

faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
x, step = jnp.ones(25_000_000), jax.jit(lambda x: x + 1)
counts = [faults()]
for _ in range(20):
    step(x).block_until_ready()
    counts.append(faults())
print(np.median(np.diff(counts)[10:]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the C library of Linux")
def test_memory_of_a_step_is_kept_for_the_next():
    """A step that returns 100 MB maps none of their 24,414 pages afresh.

    The median of ten steps: another thread may take a piece of what a step freed, and the next step
    then needs new pages.
    """
    environment = {name: each for name, each in os.environ.items() if name != "LD_PRELOAD"}
    command = [sys.executable, "-c", FAULTS]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    assert float(result.stdout) < 10_000


@pytest.mark.slow
def test_what_was_compiled_is_kept_for_the_next_program(small_run, tmp_path):
    """The first program writes each file of the user's cache once, and the second writes none."""
    environment = dict(
        XDG_CACHE_HOME=str(tmp_path),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_COMPILATION_CACHE_DIR=None,
    )

    def kept_after(*flags):
        flags = [f"--workdir={small_run[0]}", f"--out={tmp_path}/a.png", *flags]
        result = run_alone("sample", *flags, **environment)
        assert result.returncode == 0, result.stderr
        return {
            path.name: path.stat().st_mtime_ns
            for path in tmp_path.glob("genjax/compilations/*-cache")
        }

    first = kept_after("--count=1")
    assert any(name.startswith("jit_generate") for name in first)
    assert kept_after("--count=1", "--seed=3") == first
    assert kept_after("--count=2").keys() > first.keys()  # of another shape
