"""Start and end a program: flags, errors, processes, compilation cache."""

import contextlib
import ctypes
import inspect
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import absl.logging
from absl import app, flags

from experiments.configuration.fields import missing_field
from experiments.launch.config_flag import check_overrides, describe_unknown_flag, field_called
from genjax.folders import cache_folder

COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "For several processes, each started with this same command: 'auto' under SLURM, Kubernetes, "
    "Open MPI and on TPU pods, which number them; elsewhere HOST:PORT of the first one, with "
    "--num_processes and --process_id.",
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes there are.", lower_bound=1
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Which of them this one is, from 0.", lower_bound=0
)
JOIN_SECONDS = flags.DEFINE_integer(
    "join_seconds", 300, "How long a process waits at the start for the others.", lower_bound=1
)

# A process that is silent for so long is taken for dead, and the others end.
HEARTBEAT_SECONDS = 20


def keep_heap() -> None:
    """Ask glibc to keep freed memory instead of giving it back. Do nothing where there is no glibc.

    The CPU backend allocates the temporaries of each step anew. glibc maps those above 32 MB
    afresh. A thread's own heap holds 64 MB at most, so all threads share the heap that can grow.
    Without these settings the page faults made a step of the default experiment 50 % longer.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-8, 1)  # M_ARENA_MAX


def _keep_compilations() -> None:
    """Let JAX keep what takes more than a second to compile, for the next run of the same program.

    The cache is the folder JAX_COMPILATION_CACHE_DIR, or `genjax/compilations` in the user's cache
    folder (`$XDG_CACHE_HOME`, by default `~/.cache`).
    """
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compilations"))


def _join_processes() -> None:
    """Join the other processes of this program, by --coordinator."""
    import jax

    where = {}
    if COORDINATOR.value != "auto":
        where = dict(
            coordinator_address=COORDINATOR.value,
            num_processes=NUM_PROCESSES.value,
            process_id=PROCESS_ID.value,
        )
        if None in where.values():
            sys.exit("error: --coordinator=HOST:PORT needs --num_processes and --process_id too")
    # JAX's preemption service, which orbax reads too, would take SIGTERM for itself and knows no
    # other notice. `train` answers SIGTERM and other notices, and all processes save the same step.
    jax.config.update("jax_enable_preemption_service", False)
    with _joining_in_time():
        seconds = dict(
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            initialization_timeout=10 * JOIN_SECONDS.value,
        )
        jax.distributed.initialize(**where, **seconds)
        jax.devices()  # waits for the devices of all
    if jax.process_index() == 0:
        print(f"{jax.process_count()} processes with {jax.device_count()} devices", flush=True)


@contextlib.contextmanager
def _joining_in_time() -> Iterator[None]:
    """End the program if what is inside takes longer than --join_seconds.

    JAX has such a limit too, and aborts with the stack of its threads.
    """
    number = PROCESS_ID.value
    who = "" if number is None else f"this is process {number} of {NUM_PROCESSES.value}, and "
    where = "" if COORDINATOR.value == "auto" else f" at {COORDINATOR.value}"

    text = (
        f"error: not all processes have met within {JOIN_SECONDS.value} seconds: {who}process 0 is "
        f"expected{where}\nStart all of them at about the same time, or allow more by "
        "--join_seconds."
    )
    limit = threading.Timer(JOIN_SECONDS.value, _end_now, [text])
    limit.daemon = True
    limit.start()
    try:
        yield
    finally:
        limit.cancel()


REQUIRED = re.compile(r"Flag --(\w+) must have a value other than None")
# Python's words for text that is not a number.
NO_INTEGER = re.compile(r"invalid literal for int\(\).*")
NO_NUMBER = re.compile(r"could not convert string to float.*")
# ml_collections' words for a name in place of a part's fields.
NO_FIELDS = re.compile(r"flag (--config[\w.]+)=(.*): Failed to parse .* as a ConfigDict.*", re.S)


def _mark_required() -> None:
    """Let --help say which flags are required."""
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        if any(REQUIRED.search(validator.message) for validator in flag.validators):
            flag.help = f"Required. {flag.help}"


def describe_unknown(error: flags.UnrecognizedFlagError) -> str:
    """Return the error text for an unknown flag, with the field or the flag of its name, if any.

    Programs with a config know `--config.batch_size`, not `--batch_size`. Those without one know
    `--num_steps`, not `--config.sampling.num_steps`.
    """
    last = error.flagname.rpartition(".")[2]
    field = field_called(error.flagname)
    nearest = f"config.{field}" if field else last
    if nearest == error.flagname or not (field or last in flags.FLAGS):
        return str(error)
    return f"there is no flag --{error.flagname}; did you mean --{nearest}?"


def _describe_flags(error: flags.Error) -> str:
    """Return the error text for flags that are wrong or missing."""
    if missing := REQUIRED.search(str(error)):
        return f"--{missing[1]} is missing. {flags.FLAGS[missing[1]].help}"
    text = str(error).rpartition("ValueError: ")[2].strip()
    text = NO_INTEGER.sub("it must be an integer", text)
    text = NO_NUMBER.sub("it must be a number", text)
    fields = r"flag \1=\2: it has fields of its own, so set one of them, as \1.name=\2"
    text = NO_FIELDS.sub(fields, text)
    if isinstance(error, flags.UnrecognizedFlagError):
        text = describe_unknown(error)
    return f"{text}\nSee --help."


class _OneLine(logging.Formatter):
    """Formats what a library logs as a warning of Python: "warning: skipped 1 of 20 files"."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {record.getMessage()}"


def run_program(main: Callable[..., None]) -> None:
    """Parse the flags, silence the libraries and run `main`.

    Args:
        main: gets the arguments that are not flags, if it takes arguments.
    """
    takes_arguments = bool(inspect.signature(main).parameters)

    def parse(argv: list[str]) -> list[str]:
        flags.FLAGS.set_gnu_getopt()  # flags may follow arguments
        _mark_required()
        try:
            rest = flags.FLAGS(argv)
        except SystemExit as end:  # of --help, which absl ends with 1, as if it had failed
            sys.exit(0 if end.code == 1 else end.code)
        except Exception as error:
            with user_errors():  # a fault of the config file is said in the file's terms
                unknown = describe_unknown_flag(argv)
            if isinstance(error, flags.Error):
                sys.exit(f"error: {_describe_flags(error)}")
            if unknown is None:  # ml_collections reports a field of no part by several errors
                raise
            sys.exit(f"error: {unknown}")
        with user_errors():
            check_overrides()
        if len(rest) > 1 and not takes_arguments:
            sys.exit(
                f"error: {' '.join(rest[1:])} is not understood; flags begin with --, see --help"
            )
        return rest

    def start(argv: list[str]) -> None:
        absl.logging.set_verbosity(absl.logging.WARNING)
        absl.logging.get_absl_handler().setFormatter(_OneLine())
        warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
        keep_heap()
        _keep_compilations()
        if COORDINATOR.value is None:
            with memory_errors():
                main(*argv[1:])
            return
        _join_processes()
        with _others_alive(), memory_errors():
            main(*argv[1:])

    app.run(start, flags_parser=parse)


def _end_now(text: str) -> NoReturn:
    """End this process with a message. An orderly exit would wait for other processes."""
    print(text, file=sys.stderr, flush=True)
    os._exit(1)


def _end_alone(reason: str) -> NoReturn:
    """End this process because another one is gone."""
    _end_now(
        f"error: this process ends, because another one does not answer: {reason}\nStart the same "
        "command again, on as many processes as there are, to go on from the last good checkpoint."
    )


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _explain_abort(_: int) -> None:
    ctypes.CDLL(None).alarm(5)  # ends the process if this cannot
    _end_alone(f"it died or was silent for {HEARTBEAT_SECONDS} seconds")


@contextlib.contextmanager
def _others_alive() -> Iterator[None]:
    """Say what happened when another process is gone.

    Then either a collective fails, or, where it hangs, JAX's coordination service aborts this
    process after `HEARTBEAT_SECONDS`, with the stack of its thread for an explanation. Python
    cannot handle that signal.
    """
    import jax

    if jax.process_count() > 1:
        ctypes.CDLL(None).signal(signal.SIGABRT, _explain_abort)
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        _end_alone(str(error)[:300])


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """End the program with advice, without a traceback, if a device has too little memory."""
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        text = (
            f"error: {str(error).splitlines()[0]}\nTake a smaller config.batch_size to train, or "
            "config.sampling.batch_size to sample and evaluate; docs/guides/laptop_to_pod.md has "
            "more that saves memory."
        )
        if jax.process_count() == 1:
            sys.exit(text)
        _end_now(text)


def check_out(path: str | Path | None) -> None:
    """Check that a file can be written, before time is spent on what the file will hold.

    Raises:
        OSError: there is no folder for it, it is a folder itself, or it must not be written.
    """
    if not path:
        return
    if not (folder := Path(path).absolute().parent).is_dir():
        raise FileNotFoundError(f"--out={path} needs the folder {folder}, which is not there")
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder, and a file must be written there")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise PermissionError(f"{path} cannot be written: the file or its folder is read-only")


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """End the program with one message, without a traceback, where the user can fix the cause.

    A ValueError that no `raise` statement made is a fault of code, often of a part of the user's
    own. "too many values to unpack" says nothing without its place, so its traceback is kept.
    """
    try:
        yield
    except AttributeError as error:
        if not (field := missing_field(error)):
            raise
        sys.exit(
            f"error: the config has no field {field}: add it, or start from a function of "
            "experiments/configuration/base.py, which gives the fields that every config has"
        )
    except (ValueError, OSError, ImportError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        if isinstance(error, ValueError) and "raise" not in (place.line or "raise"):
            raise
        sys.exit(f"error: {error}")
