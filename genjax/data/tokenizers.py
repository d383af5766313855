"""Text to tokens, with the library `tokenizers` and the files of published text encoders."""

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int32

# All files that may belong to a tokenizer; its folder may hold other files too.
FILES = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json "
    "vocab.json merges.txt vocab.txt spiece.model"
).split()


class Tokenizer:
    """A published text encoder's tokenizer.

    Use it as `ids, mask = Tokenizer(folder).encode(prompts, length)`. The folder holds
    `tokenizer.json`, or CLIP's `vocab.json` and `merges.txt` (Radford et al. 2021), as Stable
    Diffusion's folders do. It also holds `tokenizer_config.json` or `special_tokens_map.json`,
    which name the padding token. CLIP pads with its end of text (some versions with "!"); T5 and
    BERT have padding tokens of their own.

    Attributes:
        padding_id: the padding token's number.
        num_tokens: the size of the vocabulary.
        folder: the folder of the files.
        kind: the tokenizer's class in transformers; None if the files do not name the class.

    Raises:
        FileNotFoundError: the folder lacks these files.
        ValueError: the files are damaged, or name no padding token of the vocabulary.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = folder = Path(folder)
        config = _configuration(folder)
        self.kind = config.get("tokenizer_class")
        self._tokenizer = _read(folder, config)
        self._padding = _content(config.get("pad_token"))
        named = isinstance(self._padding, str)
        self.padding_id = self._tokenizer.token_to_id(self._padding) if named else None
        if self.padding_id is None:
            raise ValueError(
                f"{folder} names {self._padding!r} as its padding token, which is not in the "
                "vocabulary"
            )
        self.num_tokens = self._tokenizer.get_vocab_size()

    def encode(
        self, prompts: Sequence[str], length: int, side: Literal["left", "right"] = "right"
    ) -> tuple[Int32[np.ndarray, "batch length"], Bool[np.ndarray, "batch length"]]:
        """Return each prompt's tokens, with start and end marks, padded or cut to `length`.

        A prompt that is cut keeps its marks, and a warning quotes the lost text. The published
        systems' encoders take a `length` of 77 (CLIP), 256 or 512 (T5) and at most 512 (BERT).

        Args:
            side: on which side of the text the padding is; "left" for Gemma 3 in LTX-2.

        Returns:
            The tokens' numbers, and a mask that is False at padding.

        Raises:
            ValueError: `prompts` is a single string, not a sequence of strings.
        """
        if isinstance(prompts, str):
            raise ValueError(
                f"prompts is the string {prompts!r}; expected a sequence of strings: "
                "put it in a list"
            )
        marks = self._tokenizer.num_special_tokens_to_add(False)
        if length <= marks:
            raise ValueError(
                f"length={length} leaves no place for a prompt: the tokenizer adds {marks} tokens"
            )
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(
            length=length, pad_id=self.padding_id, pad_token=self._padding, direction=side
        )
        encodings = self._tokenizer.encode_batch(list(prompts))
        for prompt, encoding in zip(prompts, encodings, strict=True):
            if encoding.overflowing:
                kept = max(end for _, end in encoding.offsets)  # marks and padding are at (0, 0)
                warnings.warn(
                    f"of a prompt only {length} tokens are kept; lost: {prompt[kept:]!r}",
                    stacklevel=2,
                )
        shape = (len(prompts), length)
        ids = np.array([encoding.ids for encoding in encodings], np.int32).reshape(shape)
        mask = np.array([encoding.attention_mask for encoding in encodings], bool).reshape(shape)
        return ids, mask


def _configuration(folder: Path) -> dict[str, Any]:
    config = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            try:
                config |= json.loads((folder / name).read_bytes())
            except (ValueError, TypeError) as error:
                raise ValueError(f"{folder / name} is not a JSON object: {error}") from error
    return config


def _content(token: Any) -> Any:
    """Return a token's text; older files store a dictionary instead of the text."""
    return token.get("content") if isinstance(token, dict) else token


def _read(folder: Path, config: dict[str, Any]) -> Any:
    import tokenizers

    if (folder / "tokenizer.json").exists():
        try:
            return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises no narrower type
            raise ValueError(f"{folder / 'tokenizer.json'} is not a tokenizer: {error}") from error
    if not (folder / "vocab.json").exists() or not (folder / "merges.txt").exists():
        raise FileNotFoundError(
            f"{folder} holds neither tokenizer.json nor vocab.json and merges.txt; transformers, "
            "with sentencepiece and protobuf installed, makes tokenizer.json from other files: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    if missing := [name for name in ("bos_token", "eos_token") if not _content(config.get(name))]:
        raise ValueError(
            f"{folder} names no {' and no '.join(missing)}: add them to tokenizer_config.json"
        )
    try:
        return _clip(tokenizers, folder, config)
    except Exception as error:
        raise ValueError(
            f"{folder} does not hold CLIP's vocab.json and merges.txt: {error}"
        ) from error


def _clip(tokenizers: Any, folder: Path, config: dict[str, Any]) -> Any:
    """Return CLIP's tokenizer: byte pairs within lower-case words, whose last piece is marked."""
    start, end = (_content(config[name]) for name in ("bos_token", "eos_token"))
    model = tokenizers.models.BPE.from_file(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        unk_token=end,
        end_of_word_suffix="</w>",
        continuing_subword_prefix="",
    )
    tokenizer = tokenizers.Tokenizer(model)
    normalizers, splits = tokenizers.normalizers, tokenizers.pre_tokenizers
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    # The words are contractions, runs of letters, single digits and runs of other signs, no spaces.
    words = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = splits.Sequence(
        [
            splits.Split(tokenizers.Regex(words), behavior="removed", invert=True),
            splits.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([start, end])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (start, end)],
    )
    return tokenizer
