"""Shared by all tests: fast compilation, a cache of programs, and a report of each file's cost."""

import atexit
import collections
import ctypes
import gc
import importlib.util
import os
import re
import resource
import shutil
import tempfile
from pathlib import Path

import jaxtyping
import pytest

ROOT = Path(__file__).parents[1]
# A test runs most programs a few times, so compiling costs more than running. Three things go:
# LLVM's optimizations, fusions written through MLIR, and the splitting of each program into up to
# 32 parts. The tests of `models` then take 0.6 of the CPU time.
FAST_COMPILATION = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)

# Importing and tracing make millions of objects. Collecting after every 700 takes 8 % of a trace.
gc.set_threshold(100_000)

# Set before jax is imported; programs that tests start inherit it. All workers of a session share
# the cache, so each program is compiled once, also after a worker has dropped its own (below). With
# small programs in it, eight files of tests/diffusion took 141 CPU seconds in place of 155.
FOLDERS = {
    "JAX_COMPILATION_CACHE_DIR": "genjax-compilations-",
    "TFDS_DATA_DIR": "genjax-datasets-",
}
for variable in FOLDERS.keys() - os.environ.keys():
    os.environ[variable] = tempfile.mkdtemp(prefix=FOLDERS[variable])
    atexit.register(shutil.rmtree, os.environ[variable], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ["XLA_FLAGS"] = f"{FAST_COMPILATION} {os.environ.get('XLA_FLAGS', '')}".strip()
# A worker per core runs tests, and threads of BLAS and OpenMP spin while they wait for a core. With
# both cores busy, NumPy's covariance of 256 features took 17 ms of CPU time by two threads and 2 ms
# by one. Three convolutions and a transformer layer of PyTorch took 190 ms and 2 ms.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if importlib.util.find_spec("libtpu"):
    # JAX writes programs for TPUs to the cache, but cannot read them without a TPU. All workers
    # compile at once.
    os.environ.update(JAX_ENABLE_COMPILATION_CACHE="false", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

collect_ignore = [] if importlib.util.find_spec("torch") else ["parity"]

IMPORTS = "imports, once a worker"
cpu_seconds = collections.Counter()  # by test file
peak_memory = {}  # by test file, in GiB
cleared = 0.0  # CPU seconds used when compiled programs were last dropped


@pytest.fixture
def empty_memory():
    """Begin without the programs of other tests: this one needs much memory itself."""
    drop_programs()


@pytest.fixture
def unchecked_annotations():
    """Call functions as users do: outside these tests nothing checks annotations."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def used_cpu_seconds() -> float:
    """Return the CPU seconds of this process and of the ended programs that it started."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_since_last_call() -> float:
    """Return the most memory of this process since the last call, in GiB.

    Without Linux's /proc it is the most since the process' start.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    return peak


def memory_now() -> float:
    """Return the memory of this process, in GiB; 0 without Linux's /proc."""
    pages = Path("/proc/self/statm")
    return (
        int(pages.read_text().split()[1]) * resource.getpagesize() / 2**30
        if pages.exists()
        else 0.0
    )


def return_freed_memory():
    """Give freed memory back to the system, if the allocator is jemalloc or glibc's."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallctl"):
        library.mallctl(b"arena.4096.purge", None, None, None, ctypes.c_size_t(0))  # all arenas
    elif hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def drop_programs():
    """Forget compiled programs. They stay in memory otherwise: 5 GiB in the end."""
    import jax  # reads the environment as set above

    global cleared
    jax.clear_caches()
    gc.collect()
    return_freed_memory()
    cleared = used_cpu_seconds()


def pytest_collection_finish():
    cpu_seconds[IMPORTS] = used_cpu_seconds()
    gc.collect()
    gc.freeze()  # what is imported stays, so later collections need not look at it


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    began = used_cpu_seconds()
    result = yield
    file_ends = nextitem is None or nextitem.path != item.path
    rest = used_cpu_seconds() - cleared  # dropping costs a second
    if memory_now() > (1.5 if file_ends and rest > 10 else 1.75) and rest > 3:
        drop_programs()
    if file_ends:
        peak_memory[str(item.path.relative_to(ROOT))] = peak_since_last_call()
    cpu_seconds[str(item.path.relative_to(ROOT))] += used_cpu_seconds() - began
    return result


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["cost"] = dict(cpu_seconds), peak_memory


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    seconds, peaks = node.workeroutput.get("cost", ({}, {}))
    cpu_seconds.update(seconds)
    peak_memory.update(peaks)


def pytest_terminal_summary(terminalreporter, config):
    """Print which folders exceed CONTRIBUTING's budgets.

    With `--durations`, print what all folders and files cost.
    """
    table = (ROOT / "CONTRIBUTING.md").read_text()
    budgets = {
        path: float(limit)
        for path, limit in re.findall(r"^\| `(tests/\S+)` \| (\d+) \|", table, re.M)
    }
    folders = collections.Counter()
    for path, seconds in cpu_seconds.items():
        folders["/".join(path.split("/")[:2])] += seconds
    if config.option.durations is not None:
        terminalreporter.section("CPU seconds, started programs included; GiB at most")
        for folder, total in folders.most_common():
            terminalreporter.line(f"{total:8.1f} {folder}")
            files = {
                path: seconds
                for path, seconds in cpu_seconds.items()
                if path == folder or path.startswith(f"{folder}/")
            }
            for path, seconds in sorted(files.items(), key=lambda pair: -pair[1]):
                terminalreporter.line(f"{seconds:16.1f} {peak_memory.get(path, 0.0):6.2f} {path}")
        terminalreporter.line(
            f"{folders.total():8.1f} in all, {max(peak_memory.values(), default=0.0):.2f} GiB at "
            "most"
        )
    for folder, budget in budgets.items() if config.option.markexpr == "not slow" else ():
        if folders[folder] > budget:
            terminalreporter.line(
                f"{folder}: {folders[folder]:.0f} CPU seconds, budget {budget:.0f}", yellow=True
            )
