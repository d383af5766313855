"""Configurations as transformers writes them."""

import json
import os
from collections.abc import Sequence
from typing import Any

# Of training, of generating text, of what wrote the file: nothing that changes what an encoder computes.
IRRELEVANT = frozenset(
    "architectures model_type transformers_version dtype torch_dtype initializer_range layerscale_value "
    "attention_probs_dropout_prob hidden_dropout_prob classifier_dropout drop_path_rate gradient_checkpointing "
    "use_cache bos_token_id eos_token_id pad_token_id tie_word_embeddings "
    "out_features out_indices stage_names apply_layernorm reshape_hidden_states".split()
)


def read_transformers_config(
    folder: str | os.PathLike, architectures: Sequence[str], defaults: dict[str, Any]
) -> dict[str, Any]:
    """`config.json` of a folder, less what is irrelevant, completed by `defaults`; "architectures" is the one it describes.

    Raises:
        ValueError: it is of none of `architectures`, or has entries that `defaults` has not.
    """
    path = os.path.join(folder, "config.json")
    with open(path) as file:
        config = json.load(file)
    described = config.get("architectures") or ["no architecture"]
    if described[0] not in architectures:
        raise ValueError(f"{path} describes {described[0]}; expected {' or '.join(architectures)}")
    config = {
        name: value for name, value in config.items() if name not in IRRELEVANT and not name.startswith("_")
    }
    unknown = {name: config[name] for name in sorted(config.keys() - defaults.keys())}
    if unknown:
        raise ValueError(f"{path} has entries that are not known here: {unknown}")
    return defaults | config | dict(architectures=described[0])
