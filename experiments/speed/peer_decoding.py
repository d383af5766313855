"""Decoding of a LlamaGen transformer token by token, in genjax and in PyTorch, for peers."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.speed.peer_networks import Side, genjax_facts, noisy_variables

NUM_CLASSES = 1000
WEIGHTS = "weights.npz"


class Decoding(NamedTuple):
    """A transformer over a grid of tokens, all of which are decoded with a cache.

    Tokens are drawn at temperature 0, so that results can be compared. Both libraries still draw
    the noise that other temperatures need.
    """

    vocabulary: int
    side: int
    width: int
    depth: int
    num_heads: int
    batch_size: int

    @property
    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return labels, and tokens for the comparison of logits."""
        random = np.random.default_rng(0)
        tokens = random.integers(0, self.vocabulary, (self.batch_size, self.side**2))
        return np.arange(self.batch_size), tokens

    def genjax_side(self, folder: str) -> Side:
        """Make genjax's network and weights, and save them in the folder for `torch_side`."""
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # leave PyTorch its memory
        import jax
        import jax.numpy as jnp

        from genjax.autoregression import decode, sample
        from genjax.devices.cost import multiply_adds
        from genjax.models.autoregressive.llamagen import LlamaGen
        from genjax.models.autoregressive.prefixes import ClassPrefix

        grid, prefix = (self.side, self.side), ClassPrefix(NUM_CLASSES)
        sizes = self.vocabulary, grid, self.width, self.depth, self.num_heads
        network = LlamaGen(*sizes, prefix, unroll=self.depth)
        labels, tokens = (jnp.asarray(a, jnp.int32) for a in self.inputs)
        variables = noisy_variables(network, tokens, labels)
        weights = {
            jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(a)
            for path, a in jax.tree.leaves_with_path(variables["params"])
        }
        np.savez(Path(folder, WEIGHTS), rotations=network.rotations, **weights)
        keys = jax.random.split(jax.random.key(1), self.batch_size)

        def run(variables, labels, keys, temperature):
            logits, state = network.apply(variables, labels, method="prefill")
            step = functools.partial(network.apply, variables, method="step")
            sampler = functools.partial(sample, temperature=temperature)
            return decode(keys, step, logits, state, network.length, sampler)

        arguments = variables, labels, keys, jnp.float32(0)
        call, output = jax.jit(run), jax.jit(network.apply)
        return Side(
            {
                "genjax": lambda: jax.block_until_ready(call(*arguments)),
                "output": lambda: jax.block_until_ready(output(variables, tokens, labels)),
            },
            _arrays,
            genjax_facts(variables, 2 * multiply_adds(run, *arguments)),
        )

    def torch_side(self, folder: str, channels_last: bool) -> Side:
        """Make PyTorch's network with the weights of the folder; it has no channels to order."""
        import torch

        from experiments.speed.torch_llamagen import LlamaGen

        device = "cuda" if torch.cuda.is_available() else "cpu"
        weights = dict(np.load(Path(folder, WEIGHTS)))
        rotations = weights.pop("rotations")
        model = LlamaGen(weights, rotations, self.num_heads, self.batch_size).eval().to(device)
        labels, tokens = (torch.from_numpy(a).to(device) for a in self.inputs)
        places = torch.arange(self.side**2, device=device)[:, None]
        temperature = torch.tensor(0.0, device=device)

        @torch.inference_mode()
        def decode(model: Callable, given: Any = None) -> tuple[Any, Any]:
            """Return tokens and logits, the latter given other tokens if there are any."""
            x, drawn = embedded(labels), []
            for place in places:
                token, x, logits = model(x, place, temperature)
                drawn.append((token, logits))
                if given is not None:
                    x = table(given[:, place[0]])
            return tuple(torch.stack(each, 1) for each in zip(*drawn, strict=True))

        embedded, table = model.labels, model.tokens
        models = {"torch eager": model, "torch compiled": torch.compile(model, dynamic=False)}
        calls = {name: lambda each=each: decode(each)[0].cpu() for name, each in models.items()}
        return Side(
            calls | {"output": lambda: decode(model, tokens)[1].cpu()},
            _arrays,
            dict(
                parameters=sum(parameter.numel() for parameter in model.parameters()),
                threads=torch.get_num_threads(),
                device=device,
                versions={"torch": torch.__version__},
            ),
        )


def _arrays(result: Any) -> list[np.ndarray]:
    return [np.asarray(result, np.float32)]
