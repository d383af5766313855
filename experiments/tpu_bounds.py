"""Compile networks for a TPU that is not there, and print lower bounds of their costs.

    pip install '.[tpu]'
    python -m experiments.tpu_bounds
    python -m experiments.tpu_bounds --only=flux_forward_1 --only=flux_forward_4 --out=bounds.json

The TPU's own compiler compiles each program for one v5p, or for eight. Each operation that it
schedules is bounded by its products and its bytes (genjax/devices/breakdown.py). A row has the sum
of these bounds in ms and its parts by kind of operation. It also has the GB moved, and the GB held
at the peak. All figures are of one chip. Time on links between chips does not count. On 2 cores
each program compiles in about a minute. Rows of other libraries are kept as measured (`PEERS`).
"""

import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from experiments.launch.config_flag import load_config
from experiments.launch.runtime import check_out, run_program, user_errors
from experiments.speed.breakdown import show_breakdown
from experiments.speed.programs import program_of
from genjax.devices import make_mesh
from genjax.devices.breakdown import breakdown
from genjax.devices.planning import compiled_bytes, tpu_topology
from genjax.devices.specifications import DEVICES
from genjax.models.autoencoders.autoencoder_wan import AutoencoderWan
from genjax.models.transformers.flux import Flux
from genjax.nn import Text
from genjax.nn.causal import apply_chunk, apply_chunks

DEVICE = "v5p"
FLUX = dict(
    num_double_blocks=2,
    num_single_blocks=4,
    num_heads=24,
    rotary_features=(16, 56, 56),
    dtype="bfloat16",
)
WAN_LATENTS = (1, 5, 60, 104, 16)  # of 17 frames of 480×832

Compiled = tuple[Callable, tuple]  # a jitted function, and its arguments in shapes


def _arrays(tree: PyTree, mesh: Mesh) -> PyTree:
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), tree)


def _dit_step(mesh: Mesh, **model: Any) -> Compiled:
    """Return DiT-XL/2's training step of 64 examples a chip, with `model` changed in its config."""
    config = load_config("configs/imagenet256_latent_flow.py")
    config.batch_size = 64 * mesh.size
    config.model.update(model)
    program = program_of("train", config, mesh)
    return program.jitted(), program.args


def _flux_forward(mesh: Mesh, batch_size: int) -> Compiled:
    """Return a few of FLUX.1's blocks on 4,096 + 512 tokens, with weights in bfloat16."""
    network = Flux(**FLUX, param_dtype="bfloat16")
    array = lambda *shape: jax.ShapeDtypeStruct((batch_size, *shape), jnp.bfloat16)
    inputs = array(128, 128, 16), array(), Text(array(512, 4096), array(768))
    variables = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return jax.jit(network.apply), _arrays((variables, *inputs), mesh)


def _flux_step(mesh: Mesh) -> Compiled:
    """Return a training step of the same blocks, of 4 examples."""
    config = load_config("configs/text_to_image.py:flux,latents")
    config.batch_size = 4
    config.model = dict(name="Flux", **FLUX)
    program = program_of("train", config, mesh)
    return program.jitted(), program.args


def _wan(mesh: Mesh) -> tuple[AutoencoderWan, PyTree, PyTree]:
    """Return Wan 2.1's autoencoder, its variables, and latents of 17 frames of 480×832."""
    network = AutoencoderWan(dtype=jnp.bfloat16)
    latents = jax.ShapeDtypeStruct(WAN_LATENTS, jnp.bfloat16)
    video = jax.ShapeDtypeStruct((1, 1, 16, 16, 3), jnp.bfloat16)
    variables = jax.eval_shape(network.init, jax.random.key(0), video)
    return network, *_arrays((variables, latents), mesh)


def _wan_decode(mesh: Mesh) -> Compiled:
    network, *args = _wan(mesh)
    return jax.jit(
        lambda variables, latents: network.apply(variables, latents, method="decode")
    ), tuple(args)


def _wan_decode_by_chunks(mesh: Mesh) -> Compiled:
    network, *args = _wan(mesh)
    return jax.jit(functools.partial(apply_chunks, network, method="decode")), tuple(args)


def _wan_chunk(mesh: Mesh) -> Compiled:
    """Return the decoding of four frames, given the cache of the frames before them."""
    network, variables, latents = _wan(mesh)
    step = lambda *args: apply_chunk(network, *args, method="decode")
    chunk = latents.update(shape=(1, 1, *WAN_LATENTS[2:]))
    _, cache = jax.eval_shape(step, variables, chunk)
    return jax.jit(step), (variables, chunk, _arrays(cache, mesh))


PROGRAMS: dict[str, Callable[[Mesh], Compiled]] = {
    "dit_step": _dit_step,
    "dit_step_unrolled": lambda mesh: _dit_step(mesh, unroll=28, remat_policy=None),
    "dit_step_fsdp_8": _dit_step,
    "flux_forward_1": lambda mesh: _flux_forward(mesh, 1),
    "flux_forward_4": lambda mesh: _flux_forward(mesh, 4),
    "flux_step_4": _flux_step,
    "wan_decode": _wan_decode,
    "wan_decode_by_chunks": _wan_decode_by_chunks,
    "wan_chunk": _wan_chunk,
}
MESHES = {"dit_step_fsdp_8": {"fsdp": 8}}  # of programs for several chips


class Peer(NamedTuple):
    """A row of a library: ms, GB moved and GB held at the peak; None where it was not recorded."""

    program: str
    library: str
    bound: float
    products: float | None = None
    layout: float | None = None
    elementwise: float | None = None
    kernels: float | None = None
    moved: float | None = None
    peak: float | None = None


# Compiled in November 2026 with libtpu 0.0.42 in the same step (bfloat16, AdamW, EMA) or call.
PEERS = (
    Peer("dit_step", "willisma/diffuse_nnx@023afd2", 134, 120, 0, 10, None, 190, 35.4),
    Peer("dit_step", "kvfrans (commit not recorded)", 138, 127, 0, 8, None, 243, 39.9),
    Peer("dit_step", "Gsunshine/meanflow@d70cb55", 174, 129, 15, 22, 5, 332, 46.9),
    Peer("flux_forward_1", "AI-Hypercomputer/maxdiffusion@7cfb880", 17.6),
    Peer("flux_forward_4", "AI-Hypercomputer/maxdiffusion@7cfb880", 69.4),
    Peer("wan_decode", "AI-Hypercomputer/maxdiffusion@7cfb880", 267, peak=6.4),
)


def measure(name: str) -> dict[str, Any]:
    """Compile one of the `PROGRAMS`; return its breakdown, peak in bytes and seconds to compile.

    Raises:
        ImportError: the TPU compiler is not installed.
    """
    device = DEVICES[DEVICE]
    axes = MESHES.get(name, {"data": 1})
    chips = math.prod(axes.values())
    mesh = make_mesh(axes, chips, tpu_topology(device, chips))
    jitted, args = PROGRAMS[name](mesh)
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled = jitted.lower(*args).compile()
    seconds = time.perf_counter() - began
    return dict(
        program=name, device=DEVICE, compile_seconds=seconds, peak=compiled_bytes(compiled)[1]
    ) | breakdown(compiled, device)


def row_of(found: dict[str, Any]) -> Peer:
    """Return the row of genjax in the units of `PEERS`."""
    milliseconds = lambda name: 1e3 * found["categories"].get(name, {"seconds": 0.0})["seconds"]
    parts = map(milliseconds, ("products", "layout changes", "elementwise", "kernels"))
    total = found["total"]
    return Peer(
        found["program"],
        "genjax",
        1e3 * total["seconds"],
        *parts,
        total["bytes"] / 1e9,
        found["peak"] / 1e9,
    )


def show(row: Peer) -> None:
    numbers = ["–" if number is None else f"{number:.1f}" for number in row[2:]]
    print(
        f"{row.program:20} {row.library:38}" + "".join(f"{number:>9}" for number in numbers),
        flush=True,
    )


def main() -> None:
    # JAX fails to read programs for absent TPUs from its cache, with a warning.
    jax.config.update("jax_enable_compilation_cache", False)
    found = []
    heads = ("bound ms", "products", "layout", "element", "kernels", "moved GB", "peak GB")
    print(f"{'program':20} {'library':38}" + "".join(f"{head:>9}" for head in heads))
    with user_errors():
        check_out(OUT.value)
        for name in ONLY.value or PROGRAMS:
            found.append(measure(name))
            for row in (row_of(found[-1]), *(peer for peer in PEERS if peer.program == name)):
                show(row)
        if OUT.value:
            Path(OUT.value).write_text(json.dumps(found, indent=1) + "\n")
    if BREAKDOWN.value:
        for each in found:
            print(f"\n{each['program']}, compiled in {each['compile_seconds']:.0f} s")
            show_breakdown(each)


if __name__ == "__main__":
    ONLY = flags.DEFINE_multi_enum("only", [], list(PROGRAMS), "These programs, and not all.")
    BREAKDOWN = flags.DEFINE_bool("breakdown", False, "What each operation costs, too.")
    OUT = flags.DEFINE_string("out", None, "JSON file to write, if any.")
    run_program(main)
