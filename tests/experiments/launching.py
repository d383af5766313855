"""Start commands of `experiments` in tests: in this process, or as programs of their own."""

import contextlib
import fcntl
import io
import json
import logging
import os
import runpy
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

import jax
import numpy as np
from absl import app, flags
from absl.testing import flagsaver
from jax.experimental.compilation_cache import compilation_cache

from experiments.launch import runtime

ROOT = Path(__file__).parents[2]
FLAGS = flags.FLAGS

# The default experiment, small: a step takes milliseconds.
SMALL = [
    f"--config={ROOT}/configs/digits_flow.py",
    "--config.num_steps=40",
    "--config.optimizer.warmup=5",
    "--config.model.width=32",
    "--config.model.depth=1",
    "--config.model.unroll=1",
    "--config.model.num_heads=2",
    "--config.log_every=10",
    "--config.checkpoint.every=10",
    "--config.sampling.every=20",
    "--config.sampling.per_class=2",
    "--config.sampling.num_steps=4",
    "--config.evaluation.num_samples=360",
]


def run(name: str, *args: object) -> subprocess.CompletedProcess:
    """Run a command of `experiments` in this process; return what it printed and its exit code.

    The command finds the process as a new one: flags, warnings, JAX's configuration, environment
    and signal handlers are as at the start of a program, and afterwards as they were. What is
    compiled stays, so a second run of a similar command costs little. Only what Python prints is
    captured.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        for restored in (_flags, _warnings, _logging, _jax_configuration, _process):
            stack.enter_context(restored())
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        sys.argv[1:] = map(str, args)
        imported = _forget({f"experiments.{name}"})  # runpy warns of a module that is there
        stack.callback(_remember, imported)
        try:
            runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code
        except Exception:
            traceback.print_exc()
            code = 1
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    return subprocess.CompletedProcess([name, *args], code or 0, out.getvalue(), err.getvalue())


def run_alone(name: str, *args: object, **variables: str | None) -> subprocess.CompletedProcess:
    """Run the command in a process of its own, to its end.

    Args:
        variables: of the environment; None removes one.
    """
    options = dict(
        cwd=ROOT, env=_environment(variables), capture_output=True, text=True, timeout=300
    )
    return subprocess.run(command(name, *args), **options)


def start(
    name: str, *args: object, out: str | Path | None = None, **variables: str | None
) -> subprocess.Popen:
    """Start the command in a process of its own.

    Args:
        out: file to which output and errors are appended; without one they are read from `stdout`.
        variables: as in `run_alone`.
    """
    with open(out, "a") if out else contextlib.nullcontext(subprocess.PIPE) as stdout:
        options = dict(cwd=ROOT, env=_environment(variables), stderr=subprocess.STDOUT, text=True)
        return subprocess.Popen(command(name, *args), stdout=stdout, **options)


def command(name: str, *args: object) -> list[str]:
    """Return the command line."""
    return [sys.executable, "-m", f"experiments.{name}", *map(str, args)]


def shared_run(tmp_path_factory, name: str, *args: object, launch=run) -> tuple[Path, object]:
    """Train once in a test session, whichever worker needs the run first.

    Args:
        tmp_path_factory: pytest's.
        name: of the run; one name must always stand for the same flags.
        launch: `run` or `run_alone`.

    Returns:
        The folder of the run, which no test may write to, and what training printed.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    workdir, record = folder / name / "run", folder / name / "result.json"
    workdir.parent.mkdir(exist_ok=True)
    with open(folder / name / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not record.exists():
            result = launch("train", *args, f"--workdir={workdir}")
            assert result.returncode == 0, result.stderr
            record.write_text(json.dumps([result.returncode, result.stdout, result.stderr]))
    return workdir, subprocess.CompletedProcess(["train", *args], *json.loads(record.read_text()))


def _environment(variables: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in (os.environ | variables).items() if value is not None}


@contextlib.contextmanager
def _flags() -> Iterator[None]:
    """Import modules that define flags anew, and remove them with their flags afterwards."""
    app.define_help_flags()
    defined_by = {name: FLAGS.find_module_defining_flag(name) for name in FLAGS}
    hidden = {name: FLAGS[name] for name, module in defined_by.items() if _is_ours(module)}
    modules = _forget({defined_by[name] for name in hidden})
    for name in hidden:
        delattr(FLAGS, name)
    values, parsed = flagsaver.save_flag_values(), FLAGS.is_parsed()
    FLAGS.unparse_flags()
    try:
        yield
    finally:
        defined = {
            name: FLAGS.find_module_defining_flag(name) for name in set(FLAGS) - values.keys()
        }
        _forget({module for module in defined.values() if _is_ours(module)})
        for name, module in defined.items():  # a library's, which the command imported, stays
            if module in sys.modules and not name.startswith("config."):
                values[name] = vars(FLAGS[name])
        flagsaver.restore_flag_values(values)
        _remember(modules)
        for name, flag in hidden.items():
            FLAGS[name] = flag
            FLAGS.register_flag_by_module(defined_by[name], flag)
            FLAGS.register_key_flag_for_module(defined_by[name], flag)
        FLAGS.set_gnu_getopt(False)
        FLAGS.mark_as_parsed() if parsed else FLAGS.unparse_flags()


def _is_ours(module: str) -> bool:
    return module.startswith("experiments.") and module != runtime.__name__


def _forget(names: set[str]) -> dict[str, ModuleType]:
    """Let modules be imported anew; return those that had been imported."""
    modules = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    for name in modules:
        package, _, last = name.rpartition(".")
        vars(sys.modules[package]).pop(last, None)
    return modules


def _remember(modules: dict[str, ModuleType]) -> None:
    sys.modules.update(modules)
    for name, module in modules.items():
        package, _, last = name.rpartition(".")
        setattr(sys.modules[package], last, module)


@contextlib.contextmanager
def _warnings() -> Iterator[None]:
    """Python's own filters, and warnings printed to stderr."""

    def show(message, category, filename, lineno, file=None, line=None):
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))

    with (
        warnings.catch_warnings(),
        mock.patch.object(warnings, "formatwarning", warnings.formatwarning),
    ):
        warnings.resetwarnings()
        for category in (
            DeprecationWarning,
            PendingDeprecationWarning,
            ImportWarning,
            ResourceWarning,
        ):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("default", category=DeprecationWarning, module="__main__")
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    """Without handlers, Python prints what is logged as a warning or worse to stderr."""
    handlers, level, absl_level = (
        logging.root.handlers[:],
        logging.root.level,
        logging.getLogger("absl").level,
    )
    logging.root.handlers.clear()
    with mock.patch("absl.logging.use_absl_handler"):
        yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    logging.getLogger("absl").setLevel(absl_level)


@contextlib.contextmanager
def _jax_configuration() -> Iterator[None]:
    before = dict(jax.config.values)
    yield
    changed = {name: value for name, value in before.items() if jax.config.values[name] != value}
    for name, value in changed.items():
        jax.config.update(name, value)
    if any("compilation_cache" in name for name in changed):
        compilation_cache.reset_cache()


@contextlib.contextmanager
def _process() -> Iterator[None]:
    """Restore the folder, the environment, the arguments and the signal handlers."""
    handlers = {
        each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGABRT)
    }
    with (
        contextlib.chdir(ROOT),
        mock.patch.dict(os.environ),
        mock.patch.object(sys, "argv", [""]),
        mock.patch.object(runtime, "keep_heap"),
    ):
        yield
    for each, handler in handlers.items():
        signal.signal(each, handler)


def arrays_of(path):
    """Return the arrays of an .npz file."""
    with np.load(path) as file:
        return dict(file)
