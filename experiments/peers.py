"""Time the same networks in genjax and in PyTorch, eager and compiled, in turns.

    pip install '.[parity]'
    python -m experiments.peers
    python -m experiments.peers --only=dit_training --repeats=50 --record

Both networks have the same weights, because PyTorch reads the file that genjax saved. PyTorch's
networks are diffusers' where no file is named. Both get the same inputs. Before timing, the program
compares the networks' outputs and the timed results. If PyTorch's eager program differs, nothing is
timed. If only the compiled program differs, the table says so. For example, PyTorch 2.13 on CPUs
compiles zero gradients for most of the autoencoder.

The CPU cases compute in float32:

- the forward pass and the training step of DiT-S/2 (batch 8);
- the forward pass and the gradient of a KL autoencoder with 5 million parameters on 128×128 images
  (batch 4);
- 50 guided steps of Euler's method with DiT-S/2 (4 samples);
- the training step of a Wan transformer of 30 million parameters on 640 tokens and 77 of text, and
  20 guided steps of Euler's method with it;
- 256 tokens of a LlamaGen transformer of 32 million parameters with a static cache, for one
  example and for two, as guidance has (PyTorch's network is experiments/speed/torch_llamagen.py).

The cases for an NVIDIA GPU compute in bfloat16 with float32 parameters:

- a training step of DiT-XL/2 at 256 pixels (batch 32);
- a training step of six of FLUX.1's blocks on 4096 + 512 tokens (batch 2).

Each library runs in its own process, with its default number of threads. So the two libraries share
no threads, no memory and no CUDA libraries. PyTorch trains by `loss.backward()` and its fused
AdamW, under autocast on GPUs. Its convolutions get channels_last arrays, which are as fast or
faster. --nochannels_last turns this off. One thing in diffusers' DiT is changed: its blocks share
one embedding of time and class, as in the published DiT. In diffusers each block has a copy.

The program prints medians and quartiles of seconds. It also prints ratios, the medians over the
rounds of PyTorch's seconds over genjax's. Above 1, genjax is faster. --out and --record keep the
rows, as in `experiments.benchmark`.
"""

import contextlib
import functools
import importlib.util
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.launch.runtime import keep_heap, run_program, user_errors
from experiments.speed.peer_decoding import Decoding
from experiments.speed.peer_networks import Case, Side

# Largest differences allowed for the network's output and for the timed results, relative to the
# largest value. Measured on a CPU in float32: at most 4e-6. Measured in bfloat16 for a DiT of 28
# blocks: 0.02 for the output, and 8e-5 for the loss, which is a mean.
TOLERANCE = {"float32": (1e-4, 1e-4), "bfloat16": (0.05, 0.005)}
WARM_UP = 2  # calls of each program; the checks before have compiled it


_DIT_S = functools.partial(
    Case, "dit", "DiT_S", dict(out_channels=4, base_size=16, unroll=12), (32, 32, 4)
)
_KL = functools.partial(
    Case,
    "autoencoder_kl",
    "AutoencoderKL",
    dict(latent_channels=4, widths=(64, 128, 128, 128), blocks=1),
    (128, 128, 3),
)
_WAN = functools.partial(
    Case,
    "wan",
    "Wan",
    dict(width=384, depth=12, num_heads=6, mlp_features=1536, unroll=12),
    (5, 16, 32, 16),
    1,
    text=(77, 512),
    num_steps=20,
)
CPU = {
    "dit_forward": _DIT_S(8, "forward"),
    "dit_training": _DIT_S(8, "training"),
    "autoencoder_forward": _KL(4, "forward"),
    "autoencoder_gradient": _KL(4, "gradient"),
    "dit_sampling": _DIT_S(4, "sampling"),
    "wan_training": _WAN(work="training"),
    "wan_sampling": _WAN(work="sampling"),
    "llamagen_decoding": Decoding(4096, 16, 512, 8, 8, batch_size=1),
    "llamagen_decoding_pair": Decoding(4096, 16, 512, 8, 8, batch_size=2),
}
GPU = {
    "dit_xl_training": Case(
        "dit", "DiT_XL", dict(out_channels=4, base_size=16), (32, 32, 4), 32, "training"
    ),
    "flux_training": Case(
        "flux",
        "Flux",
        dict(
            num_double_blocks=2,
            num_single_blocks=4,
            num_heads=24,
            rotary_features=(16, 56, 56),
            out_channels=16,
        ),
        (128, 128, 16),
        2,
        "training",
        text=(512, 4096, 768),
    ),
}


def serve(connection: Connection, side: Callable[..., Side], *args: Any) -> None:
    """Run one library's process.

    The process sends the library's facts, and then runs each program whose name it receives, until
    it receives None.
    """
    keep_heap()
    programs, compared, facts = side(*args)
    connection.send(facts)
    for name, compare in iter(connection.recv, None):
        began = time.perf_counter()
        result = programs[name]()
        seconds = time.perf_counter() - began
        connection.send((seconds, compared(result) if compare else None))


@contextlib.contextmanager
def _process(name: str, side: Callable[..., Side], *args: Any) -> Iterator[tuple[dict, Callable]]:
    """Start a library's process; yield the library's facts and a function that runs a program."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, side, *args))
    process.start()
    theirs.close()

    def receive():
        try:
            return ours.recv()
        except EOFError:
            raise RuntimeError(f"the process of {name} ended; what it said stands above") from None

    def run(program: str, compare: bool = False):
        ours.send((program, compare))
        return receive()

    try:
        yield receive(), run
        ours.send(None)
        process.join()
    finally:
        process.kill()
        process.join()
        ours.close()


def compare(case: Case | Decoding, repeats: int, channels_last: bool = True) -> dict[str, Any]:
    """Return a row with the seconds of each program and the ratios to genjax's seconds.

    Raises:
        ValueError: the two libraries compute on different devices.
        RuntimeError: the two networks have different numbers of parameters, or PyTorch's eager
            program has different results.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        ours, run_ours = stack.enter_context(_process("genjax", case.genjax_side, folder))
        theirs, run_theirs = stack.enter_context(
            _process("torch", case.torch_side, folder, channels_last)
        )
        on_gpu = ours["backend"] == "gpu"
        if on_gpu != (theirs["device"] == "cuda"):
            raise ValueError(
                f"JAX computes on {ours['backend']}, PyTorch on {theirs['device']}: "
                "install both for one"
            )
        if ours["parameters"] != theirs["parameters"]:
            raise RuntimeError(
                f"parameters: {ours['parameters']:,} in genjax, "
                f"{theirs['parameters']:,} in diffusers"
            )
        dtype = "bfloat16" if on_gpu else "float32"
        differences = _differences(run_ours, run_theirs, dtype)
        seconds = _timed(
            {"genjax": run_ours, "torch eager": run_theirs, "torch compiled": run_theirs}, repeats
        )
    per_second = ours["operations"] / float(np.median(seconds["genjax"]))
    return dict(
        device=ours["device"],
        devices=1,
        cores=os.cpu_count(),
        torch_threads=theirs["threads"],
        channels_last=channels_last,
        batch_size=case.batch_size,
        dtype=dtype,
        parameters=ours["parameters"],
        repeats=repeats,
        seconds={name: _quartiles(values) for name, values in seconds.items()},
        ratios={
            name: float(np.median(values / seconds["genjax"]))
            for name, values in seconds.items()
            if name != "genjax"
        },
        differences=differences,
        wrong=[name for name, by in differences.items() if not by <= TOLERANCE[dtype][1]],
        useful_multiply_adds=ours["operations"] // 2,
        operations_per_second=per_second,
        peak_share=per_second / ours["peak"] if ours["peak"] else None,
        **ours["stamp"] | {"versions": ours["stamp"]["versions"] | theirs["versions"]},
    )


def _differences(run_ours: Callable, run_theirs: Callable, dtype: str) -> dict[str, float]:
    """Return the difference from genjax's results for each of PyTorch's two programs.

    Raises:
        RuntimeError: the networks' outputs differ, or the eager program's results differ.
    """
    of_outputs, of_results = TOLERANCE[dtype]
    by = difference(run_theirs("output", True)[1], run_ours("output", True)[1])
    if not by <= of_outputs:
        raise RuntimeError(
            f"outputs of the two networks differ by {by:.2g} of the largest; "
            f"they may by {of_outputs:.2g}"
        )
    # Training compares losses. PyTorch's two programs train one network in turn, so the eager
    # program takes the first step and the compiled program takes the second.
    (*_, first), (*_, second) = run_ours("genjax", True), run_ours("genjax", True)
    differences = {
        name: difference(run_theirs(name, True)[1], expected)
        for name, expected in (("torch eager", first), ("torch compiled", second))
    }
    if not differences["torch eager"] <= of_results:
        raise RuntimeError(
            f"results of torch eager differ from genjax's by {differences['torch eager']:.2g}; "
            f"they may by {of_results:.2g}"
        )
    return differences


def _timed(runs: Mapping[str, Callable], repeats: int) -> dict[str, np.ndarray]:
    """Run the programs in turns, and return the seconds of each."""
    for name, run in runs.items():
        for _ in range(WARM_UP):
            run(name)
    rounds = [[run(name)[0] for name, run in runs.items()] for _ in range(repeats)]
    return dict(zip(runs, np.array(rounds).T, strict=True))


def _quartiles(seconds: np.ndarray) -> dict[str, Any]:
    low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
    return dict(median=middle, quartiles=[low, high])


def difference(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Return the largest difference between arrays, relative to each array's largest value.

    The difference is infinite if shapes differ, and NaN if any value is NaN. Zeros that agree, such
    as the gradient of an unused parameter, do not differ.
    """
    if [a.shape for a in found] != [b.shape for b in expected]:
        return np.inf
    largest = lambda array: float(np.abs(array).max())
    tiny = float(np.finfo(np.float32).tiny)
    pairs = zip(found, expected, strict=True)
    return float(np.max([largest(a - b) / max(largest(b), tiny) for a, b in pairs]))


def require_peers() -> None:
    """Check that PyTorch, diffusers and a C++ compiler are installed.

    Raises:
        ImportError: PyTorch or diffusers is missing.
        OSError: PyTorch finds no C++ compiler.
    """
    for name in ("torch", "diffusers"):
        if not importlib.util.find_spec(name):
            raise ImportError(f"{name} is not installed: pip install '.[parity]'")
    if not any(map(shutil.which, [os.environ.get("CXX", "g++"), "clang++"])):
        raise OSError(
            "torch.compile needs a C++ compiler and finds none: install g++, or name one in CXX"
        )


def show(name: str, row: Mapping[str, Any]) -> None:
    share = "" if row["peak_share"] is None else f", {row['peak_share']:.1%} of the peak"
    print(
        f"{name}: {row['parameters']:,} parameters, batch {row['batch_size']}, {row['dtype']}, "
        f"on {row['device']}"
    )
    for each, values in row["seconds"].items():
        low, high = values["quartiles"]
        ratio = f"{row['ratios'][each]:6.2f} × genjax's" if each in row["ratios"] else ""
        if each in row["wrong"]:
            ratio += f", with results that differ by {row['differences'][each]:.2g}: no comparison"
        print(
            f"  {each:16} {1e3 * values['median']:9.1f} ms "
            f"({1e3 * low:9.1f} … {1e3 * high:9.1f}) {ratio}"
        )
    print(f"  genjax: {row['operations_per_second'] / 1e12:.3f} Tops/s{share}", flush=True)


def main() -> None:
    with user_errors():
        require_peers()
        import torch

        from experiments.speed.records import merge, results_of

        cases = GPU if torch.cuda.is_available() else CPU
        if unknown := set(ONLY.value or ()) - set(cases):
            raise ValueError(
                f"--only={','.join(sorted(unknown))} is none of this device's {', '.join(cases)}"
            )
        for name in ONLY.value or cases:
            row = dict(config="peers", program=name) | compare(
                cases[name], REPEATS.value, CHANNELS_LAST.value
            )
            show(name, row)
            if OUT.value:
                merge(Path(OUT.value), [row])
            if RECORD.value:
                merge(results_of(row["device"]), [row])


if __name__ == "__main__":
    ONLY = flags.DEFINE_list(
        "only", None, f"Which of {', '.join([*CPU, *GPU])}; all of the device's if not given."
    )
    REPEATS = flags.DEFINE_integer(
        "repeats", 20, "Rounds in which each is timed once.", lower_bound=1
    )
    CHANNELS_LAST = flags.DEFINE_bool(
        "channels_last", True, "How PyTorch's convolutions get their arrays."
    )
    OUT = flags.DEFINE_string("out", None, "JSON file to merge the rows into, if any.")
    RECORD = flags.DEFINE_bool("record", False, "Merge the rows into experiments/speed/results.")
    run_program(main)
