"""LlamaGen's transformer in PyTorch, decoded with a static cache, to time beside genjax's.

The layers and the order of their matrices are those of the paper's network: one matrix makes
queries, keys and values. The cache has the order of `scaled_dot_product_attention`'s arguments.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from genjax.models.autoregressive.llamagen import mlp_features


class Layer(nn.Module):
    """Attention to the tokens in the cache, and a SwiGLU layer."""

    def __init__(self, width: int, num_heads: int, batch_size: int, capacity: int):
        super().__init__()
        layer = lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False)
        self.heads, inner = (num_heads, width // num_heads), mlp_features(width)
        self.attention_norm, self.mlp_norm = (nn.RMSNorm(width, eps=1e-5) for _ in range(2))
        self.query_key_value, self.projection = layer(width, 3 * width), layer(width, width)
        self.mlp_gate, self.mlp_in = layer(width, inner), layer(width, inner)
        self.mlp_out = layer(inner, width)
        for name in ("keys", "values"):
            zeros = torch.zeros(batch_size, num_heads, capacity, width // num_heads)
            self.register_buffer(name, zeros)

    def forward(self, x: Tensor, rotation: Tensor, place: Tensor, visible: Tensor) -> Tensor:
        projected = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, *self.heads))
        query, key, value = projected[..., None, :].unbind(1)
        self.keys[:, :, place], self.values[:, :, place] = _rotate(key, rotation), value
        query = _rotate(query, rotation)
        out = functional.scaled_dot_product_attention(query, self.keys, self.values, visible)
        x = x + self.projection(out.flatten(1))
        h = self.mlp_norm(x)
        return x + self.mlp_out(functional.silu(self.mlp_gate(h)) * self.mlp_in(h))


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair of features, `[… pairs 2]`, by its angle."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotation.unbind(-1)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2)


class LlamaGen(nn.Module):
    """A causal transformer whose first state is a class's, `place` 0 of the sequence.

    Args:
        weights: the variables of genjax's network by name, `blocks/query/kernel` and so on.
        rotations: `LlamaGen.rotations` of genjax's network.
    """

    def __init__(
        self,
        weights: Mapping[str, np.ndarray],
        rotations: np.ndarray,
        num_heads: int,
        batch_size: int,
    ):
        super().__init__()
        depth, width = weights["blocks/attention_norm/scale"].shape
        capacity = len(rotations)
        table = lambda name: nn.Embedding.from_pretrained(
            torch.tensor(weights[f"{name}/embedding"]), freeze=False
        )
        self.labels, self.tokens = table("prefix/label_embedding"), table("token_embedding")
        sizes = width, num_heads, batch_size, capacity
        self.layers = nn.ModuleList(Layer(*sizes) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.head = nn.Linear(width, len(self.tokens.weight), bias=False)
        self.register_buffer("rotations", torch.tensor(rotations))
        self.register_buffer("visible", torch.ones(capacity, capacity).tril().bool())
        self._load(weights)

    @torch.no_grad()
    def _load(self, weights: Mapping[str, np.ndarray]) -> None:
        def of_layer(name: str, index: int) -> np.ndarray:
            if name == "query_key_value":
                parts = (of_layer(part, index) for part in ("query", "key", "value"))
                return np.concatenate(list(parts))
            kind = "scale" if name.endswith("norm") else "kernel"
            return weights[f"blocks/{name}/{kind}"][index].T

        for index, layer in enumerate(self.layers):
            for name, child in layer.named_children():
                child.weight.copy_(torch.tensor(of_layer(name, index)))
        self.norm.weight.copy_(torch.tensor(weights["norm/scale"]))
        self.head.weight.copy_(torch.tensor(weights["head/kernel"].T))

    def forward(self, x: Tensor, place: Tensor, temperature: Tensor) -> tuple[Tensor, ...]:
        """Return the next tokens, their states and logits, after the states x at a place.

        Args:
            x: states of a class or of tokens, `[batch width]`.
            place: in the sequence, `[1]`.
            temperature: of the draw. 0 takes the most likely tokens.
        """
        rotation, visible = self.rotations[place], self.visible[place]
        for layer in self.layers:
            x = layer(x, rotation, place, visible)
        logits = self.head(self.norm(x))
        gumbel = -torch.empty_like(logits).exponential_().log()
        scaled = logits / torch.where(temperature > 0, temperature, 1.0)
        tokens = (scaled + torch.where(temperature > 0, gumbel, 0.0)).argmax(-1)
        return tokens, self.tokens(tokens), logits
