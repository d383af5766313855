"""Configurations as transformers writes them, which say much that is no network's affair."""

import json
import os
from collections.abc import Sequence
from typing import Any

# Of training, of generation, of other tasks and of the library itself.
_IRRELEVANT = frozenset(
    """
    architectures model_type dtype torch_dtype transformers_version use_cache tokenizer_class problem_type
    dropout attention_dropout dropout_rate classifier_dropout initializer_range initializer_factor
    bos_token_id pad_token_id sep_token_id decoder_start_token_id
    finetuning_task task_specific_params id2label label2id num_labels prefix
    return_dict return_dict_in_generate output_attentions output_hidden_states output_past output_scores
    torchscript use_bfloat16 tf_legacy_loss gradient_checkpointing chunk_size_feed_forward pruned_heads
    is_encoder_decoder add_cross_attention cross_attention_hidden_size tie_encoder_decoder tie_word_embeddings
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature
    top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    bad_words_ids num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    """.split()
)


def read_architecture(folder: str | os.PathLike, supported: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The architecture that `config.json` of a folder names, and all its entries.

    Raises:
        ValueError: it names none of those supported.
    """
    path = os.path.join(folder, "config.json")
    with open(path) as file:
        config = json.load(file)
    architectures = config.get("architectures") or [None]
    if architectures[0] not in supported:
        raise ValueError(f"{path} describes {architectures[0]}; expected one of {', '.join(supported)}")
    return architectures[0], config


def complete(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The entries of `config` that matter, completed by `defaults`.

    Raises:
        ValueError: it has entries that neither `defaults` has nor are known to be irrelevant.
    """
    config = {
        name: value
        for name, value in config.items()
        if name in defaults or not (name in _IRRELEVANT or name.startswith("_"))
    }
    unknown = {name: config[name] for name in sorted(config.keys() - defaults.keys())}
    if unknown:
        raise ValueError(f"the configuration has entries that are not known here: {unknown}")
    return defaults | config
