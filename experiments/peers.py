"""Times networks in genjax and in PyTorch (diffusers), eager and compiled, on the same machine in one run, in turns.

    pip install '.[parity]'
    python -m experiments.peers
    python -m experiments.peers --only=dit_training --repeats=50 --record

Both have the same weights, since one reads what the other saved, get the same inputs and give the same results. That is checked
first: where PyTorch's eager program differs nothing is timed, and where only its compiled one does, the table says so (that of
PyTorch 2.13 for CPUs has gradients of zero in most of the autoencoder). On the CPU, in float32: DiT-S/2's forward pass and training
step (batch 8), a KL autoencoder of 5 million parameters on 128×128 (batch 4), forward and with its gradient, and 50 guided steps of
Euler's method. On an NVIDIA GPU, in bfloat16 with float32 parameters: training steps of DiT-XL/2 at 256 pixels (batch 32) and of
a few of FLUX.1's blocks on 4096 + 512 tokens (batch 2).

Each library has a process of its own, so that neither's threads, memory nor CUDA libraries meet the other's, and as many threads
as it takes by itself. PyTorch's training is AdamW's fused implementation after `loss.backward()`, under autocast on GPUs; its
convolutions are given channels_last, which is faster or as fast, but with --nochannels_last. In one respect diffusers' DiT is
changed: its blocks share one embedding of time and class, as in DiT as published, where each has a copy.

Prints seconds, medians and quartiles, and ratios, medians over the rounds of PyTorch's seconds over genjax's: above 1
genjax is faster. --out and --record keep rows, as those of `experiments.benchmark`.
"""

import contextlib
import functools
import importlib
import importlib.util
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments.runtime import keep_heap, run_program, user_errors

LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.01
GUIDANCE_SCALE = 1.5
WARM_UP = 2  # calls of each after the first ones, which compile


class Case(NamedTuple):
    """What is timed.

    Attributes:
        network: a module of genjax.models and genjax.pretrained.
        make: what makes the network there.
        options: its arguments.
        shape: of an image.
        batch_size: of a call; of guided sampling, samples.
        work: forward, gradient (of the mean squared error), training (that and AdamW) or sampling.
        text: tokens and their features of a network that reads text, and features of their pooled vector.
        num_steps: of sampling.
    """

    network: str
    make: str
    options: Mapping[str, Any]
    shape: tuple[int, int, int]
    batch_size: int
    work: str
    text: tuple[int, int, int] | None = None
    num_steps: int = 50


_DIT_S = functools.partial(Case, "dit", "DiT_S", dict(out_channels=4, base_size=16, unroll=12), (32, 32, 4))
_KL = functools.partial(
    Case,
    "autoencoder_kl",
    "AutoencoderKL",
    dict(latent_channels=4, widths=(64, 128, 128, 128), blocks=1),
    (128, 128, 3),
)
CPU = {
    "dit_forward": _DIT_S(8, "forward"),
    "dit_training": _DIT_S(8, "training"),
    "autoencoder_forward": _KL(4, "forward"),
    "autoencoder_gradient": _KL(4, "gradient"),
    "dit_sampling": _DIT_S(4, "sampling"),
}
GPU = {
    "dit_xl_training": Case("dit", "DiT_XL", dict(out_channels=4, base_size=16), (32, 32, 4), 32, "training"),
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


def inputs(case: Case) -> dict[str, np.ndarray]:
    """`x`, what the network is given, `target`, what its output is compared with, and what else it reads."""
    random = np.random.default_rng(0)
    normal = lambda *shape: random.standard_normal((case.batch_size, *shape), np.float32)
    arrays = {"x": normal(*case.shape), "target": normal(*case.shape)}
    if case.network == "autoencoder_kl":
        return {"x": arrays["x"], "target": arrays["x"]}
    arrays["t"] = random.uniform(0.05, 0.95, case.batch_size).astype(np.float32)
    if case.text:
        length, features, pooled = case.text
        return arrays | {"tokens": normal(length, features), "pooled": normal(pooled)}
    return arrays | {"labels": np.arange(case.batch_size, dtype=np.int32)}


class Side(NamedTuple):
    """What a library brings.

    Attributes:
        programs: by name, calls that wait for their result.
        compared: from a result to arrays that do not depend on the library.
        facts: about itself.
    """

    programs: dict[str, Callable[[], Any]]
    compared: Callable[[Any], list[np.ndarray]]
    facts: dict[str, Any]


def genjax_side(case: Case, folder: str) -> Side:
    """Makes the network and its weights, and saves them in the folder."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the other library needs memory too
    import jax
    import jax.numpy as jnp
    import optax

    from experiments.records import stamp
    from genjax import diffusion
    from genjax.diffusion import samplers
    from genjax.nn import Text
    from genjax.pretrained.dit import MAX_PERIOD
    from genjax.training.cost import multiply_adds, peak_operations

    arrays = {name: jnp.asarray(array) for name, array in inputs(case).items()}
    target = arrays.pop("target")
    if case.text:
        arrays["text"] = Text(arrays.pop("tokens"), arrays.pop("pooled"))
    args = tuple(arrays.values())
    options = dict(case.options) | (dict(max_period=MAX_PERIOD) if case.network == "dit" else {})
    module = getattr(importlib.import_module(f"genjax.models.{case.network}"), case.make)(**options)

    @jax.jit
    def variables_of(key):
        """What is zero at first is so no more."""
        initial = module.init(key, *args)
        leaves, structure = jax.tree.flatten(initial)
        keys = jax.random.split(key, len(leaves))
        noisy = [a + 0.02 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
        return jax.tree.unflatten(structure, noisy)

    variables = variables_of(jax.random.key(0))
    pretrained = importlib.import_module(f"genjax.pretrained.{case.network}")
    pretrained.save(folder, module, jax.device_get(variables))
    if jax.default_backend() == "gpu":
        module = module.clone(dtype=jnp.bfloat16)

    def loss_of(variables, target, *args):
        return jnp.mean((module.apply(variables, *args) - target) ** 2)

    if case.work == "training":
        optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)

        def train(state, *args):
            variables, optimizer_state = state
            loss, gradients = jax.value_and_grad(loss_of)(variables, *args)
            updates, optimizer_state = optimizer.update(gradients, optimizer_state, variables)
            return (optax.apply_updates(variables, updates), optimizer_state), loss

        state, program = (variables, jax.jit(optimizer.init)(variables)), jax.jit(train, donate_argnums=0)
        operations = 2 * multiply_adds(train, state, target, *args)

        def call():
            nonlocal state
            state, loss = jax.block_until_ready(program(state, target, *args))
            return loss

    else:

        def sample(variables, noise, _, labels):
            process = diffusion.RectifiedFlow()
            apply = functools.partial(module.apply, variables)
            denoiser = diffusion.predict(apply, process, diffusion.targets.velocity)
            guided = diffusion.guide(denoiser, labels, module.null_label, GUIDANCE_SCALE)
            return samplers.euler(
                guided, process, noise, diffusion.grids.uniform_grid(process, case.num_steps)
            )

        function, args = {
            "forward": (module.apply, args),
            "gradient": (jax.value_and_grad(loss_of), (target, *args)),
            "sampling": (sample, args),
        }[case.work]
        program, operations = jax.jit(function), 2 * multiply_adds(function, variables, *args)

        def call():
            return jax.block_until_ready(program(variables, *args))

    def compared(result):
        if case.work == "gradient":
            norms = [np.linalg.norm(gradient) for gradient in jax.tree.leaves(result[1])]
            return [np.asarray(result[0]), np.linalg.norm(norms)]
        return [np.asarray(result, np.float32)]

    device = jax.devices()[0]
    return Side(
        {"genjax": call},
        compared,
        dict(
            parameters=sum(a.size for a in jax.tree.leaves(variables)),
            operations=operations,
            peak=peak_operations(device.device_kind),
            device=device.device_kind,
            backend=jax.default_backend(),
            stamp=stamp(),
        ),
    )


def torch_side(case: Case, folder: str, channels_last: bool) -> Side:
    """Opens what `genjax_side` saved."""
    import diffusers
    import torch

    name = {
        "dit": "DiTTransformer2DModel",
        "flux": "FluxTransformer2DModel",
        "autoencoder_kl": "AutoencoderKL",
    }[case.network]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = getattr(diffusers, name).from_pretrained(folder, low_cpu_mem_usage=False).eval()  # no dropout
    if case.network == "dit":
        for block in model.transformer_blocks[1:]:
            block.norm1.emb = model.transformer_blocks[0].norm1.emb
    if case.network == "autoencoder_kl" and channels_last:
        model.to(memory_format=torch.channels_last)
    model.to(device)
    tensors = {key: torch.from_numpy(value).to(device) for key, value in inputs(case).items()}
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for key in ("x", "target"):
        tensors[key] = tensors[key].permute(0, 3, 1, 2).contiguous(memory_format=layout)
    if case.network == "flux":  # takes patches as vectors, their channels first, and their positions
        height, width = (side // 2 for side in case.shape[:2])
        for key in ("x", "target"):
            patches = tensors[key].unflatten(2, (height, 2)).unflatten(4, (width, 2))
            tensors[key] = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2).contiguous()
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        positions = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1)
        image_ids = positions.float().to(device)
        text_ids = torch.zeros(case.text[0], 3, device=device)

    def apply(model, x, t=None, labels=None):
        if case.network == "dit":
            return model(x, timestep=1000 * t, class_labels=labels).sample
        if case.network == "flux":
            text, pooled = tensors["tokens"], tensors["pooled"]
            return model(x, text, pooled, t, image_ids, text_ids).sample
        return model(x).sample

    args = [tensors[key] for key in ("x", "t", "labels") if key in tensors]
    autocast = functools.partial(torch.autocast, "cuda", torch.bfloat16, enabled=device == "cuda")
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)

    def backward(model):
        model.zero_grad(set_to_none=True)
        with autocast():
            output = apply(model, *args)
        loss = torch.nn.functional.mse_loss(output.float(), tensors["target"])
        loss.backward()
        return loss.detach()

    def training(model):
        loss = backward(model)
        optimizer.step()
        return loss

    def gradient(model):
        loss = backward(model)
        return loss, [parameter.grad for parameter in model.parameters()]

    @torch.inference_mode()
    def forward(model):
        with autocast():
            return apply(model, *args)

    @torch.inference_mode()
    def sampling(model):
        x, labels = tensors["x"], tensors["labels"]
        both = torch.cat([labels, torch.full_like(labels, model.config.num_embeds_ada_norm)])
        times = torch.linspace(1, 0, case.num_steps + 1, device=device)
        for t, s in zip(times[:-1], times[1:], strict=True):
            with autocast():
                velocities = apply(model, torch.cat([x, x]), t.expand(len(both)), both)
            conditional, unconditional = velocities.chunk(2)
            x = x + (s - t) * (unconditional + GUIDANCE_SCALE * (conditional - unconditional))
        return x

    work = dict(training=training, gradient=gradient, forward=forward, sampling=sampling)[case.work]
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None

    def call(model):
        result = work(model)
        synchronize()
        return result

    def compared(result):
        if case.work == "gradient":
            norms = [gradient.norm() for gradient in result[1] if gradient is not None]
            return [result[0].cpu().numpy(), torch.stack(norms).norm().cpu().numpy()]
        result = result.float().cpu()
        return [(result.permute(0, 2, 3, 1) if result.ndim == 4 else result).numpy()]

    models = {"torch eager": model, "torch compiled": torch.compile(model, dynamic=False)}
    return Side(
        {name: functools.partial(call, each) for name, each in models.items()},
        compared,
        dict(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            threads=torch.get_num_threads(),
            device=device,
            versions={"torch": torch.__version__, "diffusers": diffusers.__version__},
        ),
    )


def serve(connection: Connection, side: Callable[..., Side], *args: Any) -> None:
    """A library's process: sends its facts, then runs the programs whose names it receives, until that is None."""
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
    """The facts of a library in a process of its own, and what runs one of its programs there."""
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


def compare(case: Case, repeats: int, channels_last: bool = True) -> dict[str, Any]:
    """Seconds of each program, and ratios to genjax's.

    Raises:
        RuntimeError: the two networks have another number of parameters, or, PyTorch's not compiled, other results.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        ours, run_ours = stack.enter_context(_process("genjax", genjax_side, case, folder))
        theirs, run_theirs = stack.enter_context(_process("torch", torch_side, case, folder, channels_last))
        on_gpu = ours["backend"] == "gpu"
        if on_gpu != (theirs["device"] == "cuda"):
            raise RuntimeError(
                f"JAX computes on {ours['backend']}, PyTorch on {theirs['device']}: install both for one"
            )
        if ours["parameters"] != theirs["parameters"]:
            raise RuntimeError(
                f"parameters: {ours['parameters']:,} in genjax, {theirs['parameters']:,} in diffusers"
            )
        runs = {"genjax": run_ours, "torch eager": run_theirs, "torch compiled": run_theirs}
        # Of training, losses: the first, and that after a step, which the two of PyTorch make with one network.
        (*_, first), (*_, second) = run_ours("genjax", True), run_ours("genjax", True)
        differences = {
            name: difference(run_theirs(name, True)[1], expected)
            for name, expected in (("torch eager", first), ("torch compiled", second))
        }
        tolerance = 0.05 if on_gpu else 1e-4
        if not differences["torch eager"] <= tolerance:
            raise RuntimeError(
                f"results of torch eager differ from genjax's by {differences['torch eager']:.2g}; "
                f"they may by {tolerance:.2g}"
            )
        for name, run in runs.items():
            for _ in range(WARM_UP):
                run(name)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, run in runs.items():
                seconds[name].append(run(name)[0])
    seconds = {name: np.array(values) for name, values in seconds.items()}
    quartiles = {name: np.quantile(values, [0.25, 0.5, 0.75]).tolist() for name, values in seconds.items()}
    per_second = ours["operations"] / quartiles["genjax"][1]
    return dict(
        device=ours["device"],
        devices=1,
        cores=os.cpu_count(),
        torch_threads=theirs["threads"],
        batch_size=case.batch_size,
        dtype="bfloat16" if on_gpu else "float32",
        parameters=ours["parameters"],
        repeats=repeats,
        seconds={
            name: dict(median=middle, quartiles=[low, high])
            for name, (low, middle, high) in quartiles.items()
        },
        ratios={
            name: float(np.median(values / seconds["genjax"]))
            for name, values in seconds.items()
            if name != "genjax"
        },
        differences=differences,
        wrong=[name for name, by in differences.items() if not by <= tolerance],
        multiply_adds=ours["operations"] // 2,
        operations_per_second=per_second,
        peak_share=per_second / ours["peak"] if ours["peak"] else None,
        **ours["stamp"] | {"versions": ours["stamp"]["versions"] | theirs["versions"]},
    )


def difference(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The largest difference of arrays, each over its largest value; infinite if shapes differ."""
    if [a.shape for a in found] != [b.shape for b in expected]:
        return np.inf
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, expected, strict=True))


def require_peers() -> None:
    """
    Raises:
        ImportError: PyTorch or diffusers is missing.
        OSError: PyTorch has no compiler.
    """
    for name in ("torch", "diffusers"):
        if not importlib.util.find_spec(name):
            raise ImportError(f"{name} is not installed: pip install '.[parity]'")
    if not any(map(shutil.which, [os.environ.get("CXX", "g++"), "clang++"])):
        raise OSError("torch.compile needs a C++ compiler and finds none: install g++, or name one in CXX")


def show(name: str, row: Mapping[str, Any]) -> None:
    share = "" if row["peak_share"] is None else f", {row['peak_share']:.1%} of the peak"
    print(
        f"{name}: {row['parameters']:,} parameters, batch {row['batch_size']}, {row['dtype']}, on {row['device']}"
    )
    for each, values in row["seconds"].items():
        low, high = values["quartiles"]
        ratio = f"{row['ratios'][each]:6.2f} × genjax's" if each in row["ratios"] else ""
        if each in row["wrong"]:
            ratio += f", with results that differ by {row['differences'][each]:.2g}: no comparison"
        print(f"  {each:16} {1e3 * values['median']:9.1f} ms ({1e3 * low:9.1f} … {1e3 * high:9.1f}) {ratio}")
    print(f"  genjax: {row['operations_per_second'] / 1e12:.3f} Tops/s{share}", flush=True)


def main() -> None:
    with user_errors():
        require_peers()
        import torch

        from experiments.records import merge, results_of

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
    REPEATS = flags.DEFINE_integer("repeats", 20, "Rounds in which each is timed once.", lower_bound=1)
    CHANNELS_LAST = flags.DEFINE_bool("channels_last", True, "How PyTorch's convolutions get their arrays.")
    OUT = flags.DEFINE_string("out", None, "JSON file to merge the rows into, if any.")
    RECORD = flags.DEFINE_bool("record", False, "Merge the rows into experiments/results.")
    run_program(main)
