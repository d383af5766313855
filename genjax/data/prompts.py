"""Prompts after a frozen text encoder, kept in array_record files, so that none is ever encoded twice.

A folder holds `origin.json`, what encoded them, and parts, each complete or absent: `HASH.array_record`, a record per prompt in
the safetensors format, and beside it `HASH.json`, the prompts in the same order.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genjax.data.transforms import Example, Transform

ORIGIN = "origin.json"
PART = 4096  # prompts
Encoded = Mapping[str, np.ndarray]


class PromptCache:
    """`cache[prompt]` is what an encoder made of it, a dictionary of arrays: `tokens` `[tokens features]` and, if the encoder
    gives one, `pooled` `[pooled_features]`.

    Args:
        folder: made if it does not exist.
        origin: what the encoder is, in a form that JSON keeps.

    Raises:
        ValueError: the folder's prompts were encoded by another.
    """

    def __init__(self, folder: str | os.PathLike, origin: Any):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / ORIGIN
        if not path.exists():
            path.write_text(json.dumps(origin, indent=2) + "\n")
        elif (there := json.loads(path.read_text())) != json.loads(json.dumps(origin)):
            raise ValueError(
                f"{self.folder} holds prompts encoded by {there}, not by {origin}: take another folder, or empty it"
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
        """Encodes those prompts that are not there yet, batch by batch; yields how many are done. They are kept
        in parts of `PART`: what was begun and not ended is encoded again.

        Args:
            encode: from prompts to what is to be kept of each.
        """
        from array_record.python.array_record_module import ArrayRecordWriter
        from safetensors.numpy import save

        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self]
        for start in range(0, len(missing), PART):
            part = missing[start : start + PART]
            name = hashlib.sha256(json.dumps(part).encode()).hexdigest()[:16]
            unfinished = self.folder / f"{name}.{os.getpid()}"
            writer = ArrayRecordWriter(str(unfinished), "group_size:1")
            for i in range(0, len(part), batch_size):
                for encoded in encode(part[i : i + batch_size]):
                    writer.write(
                        save({key: np.ascontiguousarray(array) for key, array in encoded.items()})
                    )
                yield start + min(i + batch_size, len(part))
            writer.close()
            listing = self.folder / f"{name}.json"
            unfinished.rename(listing.with_suffix(".array_record"))
            unfinished.write_text(json.dumps(part, ensure_ascii=False))
            unfinished.rename(listing)  # the last, so that a part that is listed is whole
            self._open(listing)

    def _open(self, listing: Path) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        records = ArrayRecordDataSource([str(listing.with_suffix(".array_record"))])
        prompts = json.loads(listing.read_text())
        self._places |= {prompt: (records, index) for index, prompt in enumerate(prompts)}


def padded(encoded: Encoded, length: int) -> dict[str, np.ndarray]:
    """Of one prompt: `tokens` cut or filled with zeros to `[length features]`, their `mask` `[length]`, and the rest."""
    tokens = encoded["tokens"][:length]
    return {
        **encoded,
        "tokens": np.pad(tokens, ((0, length - len(tokens)), (0, 0))),
        "mask": np.arange(length) < len(tokens),
    }


def with_prompts(
    cache: PromptCache, captions: Sequence[Sequence[str]], length: int, first: float = 1.0
) -> Transform:
    """Adds one of its captions to each example of a captioned data set, as `padded` gives it.

    Args:
        captions: `Dataset.captions`.
        length: tokens of each prompt, filled or cut.
        first: probability of an example's first caption; one of the others else, each as likely.
    """

    def add(example: Example, generator: np.random.Generator) -> Example:
        name, *others = captions[int(example["index"])]
        if others and generator.random() >= first:
            name = others[generator.integers(len(others))]
        return {**example, **padded(cache[name], length)}

    return add
