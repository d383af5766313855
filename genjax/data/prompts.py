"""Outputs of a frozen text encoder for prompts, cached in array_record files.

No prompt is encoded twice. A folder holds `origin.json`, which names the encoder, and parts, each
complete or absent. A part is `HASH.array_record`, one record per prompt in the safetensors format,
and `HASH.json`, the prompts in the same order.
"""

import hashlib
import json
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genjax.data.transforms import Example, Transform
from genjax.unfinished import unfinished

ORIGIN = "origin.json"
PART = 4096  # prompts
Encoded = Mapping[str, np.ndarray]


class PromptCache:
    """A cache of encoded prompts: `cache[prompt]` is a dictionary of arrays.

    The arrays are `tokens` `[tokens features]` and, if the encoder gives one, `pooled`
    `[pooled_features]`.

    Args:
        folder: created if it does not exist.
        origin: a description of the encoder that JSON can hold.
        same: whether the folder's description and `origin` are of one encoder.

    Raises:
        ValueError: another encoder made the folder's prompts.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        origin: Any,
        same: Callable[[Any, Any], bool] = operator.eq,
    ):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / ORIGIN
        if not path.exists():
            with unfinished(path) as part:
                part.write_text(json.dumps(origin, indent=2) + "\n")
        elif not same(there := json.loads(path.read_text()), json.loads(json.dumps(origin))):
            raise ValueError(
                f"{self.folder} holds prompts encoded by {there}, not by {origin}: "
                "take another folder, or empty this one"
            )
        self._places: dict[str, tuple[Any, int]] = {}
        for listing in sorted(self.folder.glob("*.json")):
            if listing.name != ORIGIN:
                self._open(listing)

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._places

    def __getitem__(self, prompt: str) -> dict[str, np.ndarray]:
        from safetensors.numpy import load

        records, index = self._places[prompt]
        return load(records[index])

    def add(
        self,
        prompts: Sequence[str],
        encode: Callable[[list[str]], Sequence[Encoded]],
        *,
        batch_size: int = 64,
    ) -> Iterator[int]:
        """Encode the prompts that are missing, batch by batch, and yield how many are done.

        Prompts are stored in parts of `PART`. An interrupted part is encoded again.

        Args:
            encode: maps prompts to what is stored for each.
        """
        from array_record.python.array_record_module import ArrayRecordWriter
        from safetensors.numpy import save

        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self]
        for start in range(0, len(missing), PART):
            part = missing[start : start + PART]
            name = hashlib.sha256(json.dumps(part).encode()).hexdigest()[:16]
            listing = self.folder / f"{name}.json"
            with unfinished(listing.with_suffix(".array_record")) as records:
                writer = ArrayRecordWriter(str(records), "group_size:1")
                for i in range(0, len(part), batch_size):
                    for encoded in encode(part[i : i + batch_size]):
                        writer.write(save({n: np.ascontiguousarray(a) for n, a in encoded.items()}))
                    yield start + min(i + batch_size, len(part))
                writer.close()
            with unfinished(listing) as texts:  # last, so that every listed part is complete
                texts.write_text(json.dumps(part))
            self._open(listing)

    def _open(self, listing: Path) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        records = ArrayRecordDataSource([str(listing.with_suffix(".array_record"))])
        prompts = json.loads(listing.read_text(encoding="utf-8"))  # earlier versions wrote UTF-8
        self._places |= {prompt: (records, index) for index, prompt in enumerate(prompts)}


def padded(encoded: Encoded, length: int) -> dict[str, np.ndarray]:
    """Pad or cut the `tokens` of one prompt to `[length features]`, and add their `mask`
    `[length]`.

    Padding is zero, and the mask is False there. Other arrays are kept.
    """
    tokens = encoded["tokens"][:length]
    return {
        **encoded,
        "tokens": np.pad(tokens, ((0, length - len(tokens)), (0, 0))),
        "mask": np.arange(length) < len(tokens),
    }


def with_prompts(
    cache: PromptCache, captions: Sequence[Sequence[str]], length: int, first: float = 1.0
) -> Transform:
    """Return a transform that adds one encoded caption to each example of a captioned data set.

    The transform adds the arrays of `padded`.

    Args:
        captions: `Dataset.captions`.
        length: the number of tokens of each prompt, padded or cut.
        first: the probability of an example's first caption. The other captions are equally likely.
    """

    def add(example: Example, generator: np.random.Generator) -> Example:
        name, *others = captions[int(example["index"])]
        if others and generator.random() >= first:
            name = others[generator.integers(len(others))]
        return {**example, **padded(cache[name], length)}

    return add
