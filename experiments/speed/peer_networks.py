"""The networks that `experiments.peers` times, in genjax and in PyTorch (diffusers)."""

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.01
GUIDANCE_SCALE = 1.5


class Case(NamedTuple):
    """A network and the work that is timed.

    Attributes:
        network: name of a module in genjax.models.transformers or genjax.models.autoencoders.
        make: name of the class or function in that module that makes the network.
        options: arguments of `make`.
        shape: shape of an example, `(height, width, channels)` or, for Wan,
            `(time, height, width, channels)`.
        batch_size: examples of a call; number of samples for sampling.
        work: "forward", "gradient" (of the mean squared error), "training" (the gradient and
            AdamW's update) or "sampling" (Euler's method with guidance).
        text: number of tokens, their features, and, if the network reads one, the features of the
            pooled vector. None if the network reads no text.
        num_steps: number of sampling steps.
    """

    network: str
    make: str
    options: Mapping[str, Any]
    shape: tuple[int, ...]
    batch_size: int
    work: str
    text: tuple[int, ...] | None = None
    num_steps: int = 50

    def genjax_side(self, folder: str) -> "Side":
        return genjax_side(self, folder)

    def torch_side(self, folder: str, channels_last: bool) -> "Side":
        return torch_side(self, folder, channels_last)


def inputs(case: Case) -> dict[str, np.ndarray]:
    """Return the inputs of a case as arrays from a fixed seed.

    `x` is the network's input and `target` is what its output is compared with. The other arrays
    are times, labels or text, if the network reads them.
    """
    random = np.random.default_rng(0)
    normal = lambda *shape: random.standard_normal((case.batch_size, *shape), np.float32)
    arrays = {"x": normal(*case.shape), "target": normal(*case.shape)}
    if case.network == "autoencoder_kl":
        return {"x": arrays["x"], "target": arrays["x"]}
    arrays["t"] = random.uniform(0.05, 0.95, case.batch_size).astype(np.float32)
    if case.text:
        arrays["tokens"] = normal(*case.text[:2])
        return arrays | ({"pooled": normal(*case.text[2:])} if case.text[2:] else {})
    return arrays | {"labels": np.arange(case.batch_size, dtype=np.int32)}


class Side(NamedTuple):
    """One library's programs for a case.

    Attributes:
        programs: functions by name. A call waits for its result. "output" returns the network's
            output; call it before any training, which changes the weights.
        compared: function from a result to arrays that can be compared across libraries.
        facts: the library's device, versions and number of parameters, among others.
    """

    programs: dict[str, Callable[[], Any]]
    compared: Callable[[Any], list[np.ndarray]]
    facts: dict[str, Any]


def genjax_side(case: Case, folder: str) -> Side:
    """Make genjax's network and weights, and save them in the folder for `torch_side`."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # leave PyTorch its memory
    import jax
    import jax.numpy as jnp

    from genjax import parts, pretrained
    from genjax.devices.cost import multiply_adds
    from genjax.nn import Text, as_written
    from genjax.pretrained.dit import MAX_PERIOD

    arrays = {name: jnp.asarray(array) for name, array in inputs(case).items()}
    target = arrays.pop("target")
    if case.text:
        arrays["text"] = Text(arrays.pop("tokens"), arrays.pop("pooled", None))
    args = tuple(arrays.values())
    options = dict(case.options) | (dict(max_period=MAX_PERIOD) if case.network == "dit" else {})
    places = ("genjax.models.transformers", "genjax.models.autoencoders")
    module = parts.find(f"{case.network}.{case.make}", places, "the network")(**options)

    variables = noisy_variables(module, *args)
    pretrained.save(folder, module, jax.device_get(variables))
    if jax.default_backend() == "gpu":
        module = module.clone(dtype=jnp.bfloat16)
    output = functools.partial(jax.jit(module.apply), variables, *args)
    call, counted = _genjax_work(case, module, variables, target, args)
    with as_written(True):  # leave out what attention's gradient computes again
        operations = 2 * multiply_adds(*counted)
    return Side(
        {"genjax": call, "output": lambda: jax.block_until_ready(output())},
        _genjax_arrays,
        genjax_facts(variables, operations),
    )


def noisy_variables(module: Any, *args: Any) -> Any:
    """Initialise a network and add noise, because zero weights would hide differences."""
    import jax

    @jax.jit
    def make(key):
        initial = module.init(key, *args)
        leaves, structure = jax.tree.flatten(initial)
        keys = jax.random.split(key, len(leaves))
        noisy = [
            a + 0.02 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(structure, noisy)

    return make(jax.random.key(0))


def genjax_facts(variables: Any, operations: int) -> dict[str, Any]:
    """Return the facts of genjax's side."""
    import jax

    from experiments.speed.records import stamp
    from genjax.devices.cost import peak_operations

    device = jax.devices()[0]
    return dict(
        parameters=sum(a.size for a in jax.tree.leaves(variables)),
        operations=operations,
        peak=peak_operations(device.device_kind),
        device=device.device_kind,
        backend=jax.default_backend(),
        stamp=stamp(),
    )


def _genjax_work(
    case: Case, module: Any, variables: Any, target: Any, args: tuple
) -> tuple[Callable, tuple]:
    """Return the call that is timed, and the function and arguments to count operations of."""
    import jax
    import jax.numpy as jnp
    import optax

    from genjax import diffusion
    from genjax.diffusion import samplers

    def loss_of(variables, target, *args):
        return jnp.mean((module.apply(variables, *args) - target) ** 2)

    def sample(variables, noise, _, condition):
        process = diffusion.RectifiedFlow()
        apply = functools.partial(module.apply, variables)
        denoiser = diffusion.predict(apply, process, diffusion.targets.velocity)
        null = jax.tree.map(jnp.zeros_like, condition) if case.text else module.null_label
        guided = diffusion.guide(denoiser, condition, null, GUIDANCE_SCALE)
        return samplers.euler(
            guided, process, noise, diffusion.grids.uniform_grid(process, case.num_steps)
        )

    if case.work != "training":
        function, arguments = {
            "forward": (module.apply, args),
            "gradient": (jax.value_and_grad(loss_of), (target, *args)),
            "sampling": (sample, args),
        }[case.work]
        program = functools.partial(jax.jit(function), variables, *arguments)
        return lambda: jax.block_until_ready(program()), (function, variables, *arguments)

    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def train(state, *args):
        variables, optimizer_state = state
        loss, gradients = jax.value_and_grad(loss_of)(variables, *args)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, variables)
        return (optax.apply_updates(variables, updates), optimizer_state), loss

    state = variables, jax.jit(optimizer.init)(variables)
    program = jax.jit(train, donate_argnums=0)
    counted = train, state, target, *args

    def call():
        nonlocal state
        state, loss = jax.block_until_ready(program(state, target, *args))
        return loss

    return call, counted


def _genjax_arrays(result: Any) -> list[np.ndarray]:
    """Return the output, or the loss, or the loss and its gradient's norm."""
    if not isinstance(result, tuple):
        return [np.asarray(result, np.float32)]
    import jax

    norms = [np.linalg.norm(gradient) for gradient in jax.tree.leaves(result[1])]
    return [np.asarray(result[0]), np.linalg.norm(norms)]


def torch_side(case: Case, folder: str, channels_last: bool) -> Side:
    """Open the network that `genjax_side` saved, as diffusers' network."""
    import diffusers
    import torch
    from safetensors.torch import load_file

    name = {
        "dit": "DiTTransformer2DModel",
        "flux": "FluxTransformer2DModel",
        "wan": "WanTransformer3DModel",
        "autoencoder_kl": "AutoencoderKL",
    }[case.network]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # `from_pretrained` would need another package, accelerate, for Wan.
    kind = getattr(diffusers, name)
    model = kind.from_config(kind.load_config(folder))
    model.load_state_dict(load_file(Path(folder) / "diffusion_pytorch_model.safetensors"))
    model.eval()  # turns dropout off
    if case.network == "dit":
        for block in model.transformer_blocks[1:]:
            block.norm1.emb = model.transformer_blocks[0].norm1.emb
    if case.network == "autoencoder_kl" and channels_last:
        model.to(memory_format=torch.channels_last)
    model.to(device)
    tensors = {key: torch.from_numpy(value).to(device) for key, value in inputs(case).items()}
    images = channels_last and len(case.shape) == 3
    layout = torch.channels_last if images else torch.contiguous_format
    for key in ("x", "target"):
        tensors[key] = tensors[key].movedim(-1, 1).contiguous(memory_format=layout)
        if case.network == "flux":
            tensors[key] = _torch_patches(tensors[key])
    work = _torch_work(case, model, tensors)
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None

    def call(model):
        result = work[case.work](model)
        synchronize()
        return result

    models = {"torch eager": model, "torch compiled": torch.compile(model, dynamic=False)}
    return Side(
        {name: functools.partial(call, each) for name, each in models.items()}
        | {"output": functools.partial(work["forward"], model)},
        functools.partial(_torch_arrays, case),
        dict(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            threads=torch.get_num_threads(),
            device=device,
            versions={"torch": torch.__version__, "diffusers": diffusers.__version__},
        ),
    )


def _torch_apply(case: Case, tensors: Mapping[str, Any]) -> Callable:
    """Return a function `(model, x, t, condition)` → output, with each network's argument names."""
    import torch

    if case.network == "wan":
        return lambda model, x, t, tokens: model(x, 1000 * t, tokens).sample
    if case.network == "dit":
        return lambda model, x, t, labels: model(x, timestep=1000 * t, class_labels=labels).sample
    if case.network == "autoencoder_kl":
        return lambda model, x: model(x).sample
    text, device = tensors["tokens"], tensors["tokens"].device
    rows, columns = torch.meshgrid(
        *(torch.arange(side // 2) for side in case.shape[:2]), indexing="ij"
    )
    positions = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1)
    ids = positions.float().to(device), torch.zeros(case.text[0], 3, device=device)
    return lambda model, x, t, _: model(x, text, tensors["pooled"], t, *ids).sample


def _torch_work(case: Case, model: Any, tensors: Mapping[str, Any]) -> dict[str, Callable]:
    """Return the work of each name as a function of the model, which may be compiled."""
    import torch

    device = tensors["x"].device.type
    apply = _torch_apply(case, tensors)
    args = [tensors[key] for key in ("x", "t", "labels", "tokens") if key in tensors]
    autocast = functools.partial(torch.autocast, "cuda", torch.bfloat16, enabled=device == "cuda")
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )

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
        x, condition = tensors["x"], args[-1]
        null = 0 if case.text else model.config.num_embeds_ada_norm
        both = torch.cat([condition, torch.full_like(condition, null)])
        times = torch.linspace(1, 0, case.num_steps + 1, device=device)
        for t, s in zip(times[:-1], times[1:], strict=True):
            with autocast():
                velocities = apply(model, torch.cat([x, x]), t.expand(len(both)), both)
            conditional, unconditional = velocities.chunk(2)
            x = x + (s - t) * (unconditional + GUIDANCE_SCALE * (conditional - unconditional))
        return x

    return dict(training=training, gradient=gradient, forward=forward, sampling=sampling)


def _torch_patches(images: Any) -> Any:
    """Cut images `[batch channels height width]` into 2×2 patches.

    Returns vectors `[batch patches features]`, whose features are ordered by channel first.
    """
    height, width = (side // 2 for side in images.shape[2:])
    patches = images.unflatten(2, (height, 2)).unflatten(4, (width, 2))
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2).contiguous()


def _torch_arrays(case: Case, result: Any) -> list[np.ndarray]:
    """Return the arrays of `_genjax_arrays`.

    Images get channels last, and patches become images.
    """
    import torch

    if isinstance(result, tuple):
        norms = [gradient.norm() for gradient in result[1] if gradient is not None]
        return [result[0].cpu().numpy(), torch.stack(norms).norm().cpu().numpy()]
    if result.ndim == 3:  # patches of `_torch_patches`
        height, width = (side // 2 for side in case.shape[:2])
        patches = result.unflatten(1, (height, width)).unflatten(3, (-1, 2, 2))
        result = patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    result = result.float().cpu()
    return [(result.movedim(1, -1) if result.ndim > 3 else result).numpy()]
