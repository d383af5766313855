"""Tokenizers compared with transformers' fast ones: small ones trained here, and MiniLM's."""

import json
import warnings

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, trainers

from genjax.data import load_dataset
from genjax.data.tokenizers import Tokenizer
from genjax.pretrained.minilm import minilm_folder

CORPUS = [
    "a photo of a cat",
    "a photo of the cats' red apples",
    "they've got 1234 apples, on a table",
]
PROMPTS = [
    "A photo of a cat",
    "",
    "  The   red\tapples' table,\n they'VE  got 56!? ...",
    "Ein naïves Café (東京) — #1 😀, with combining accents nai\u0308ves Cafe\u0301",
    "the cat's, I'm, don't, they're, we've, we'll, he'd; 'stable",
    "cat<|endoftext|>cat </s> [SEP]",
    "a photo of cats " * 9,
]


def clip(folder):
    library = Library(models.BPE(end_of_word_suffix="</w>"))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, end_of_word_suffix="</w>", initial_alphabet=alphabet
    )
    library.train_from_iterator(CORPUS, trainer)
    model = json.loads(library.to_str())["model"]
    vocabulary = model["vocab"]
    # After training, only characters that end words in the corpus would have the mark.
    for sign in alphabet:
        vocabulary.setdefault(sign + "</w>", len(vocabulary))
    for mark in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[mark] = len(vocabulary)
    merges = [tuple(pair) for pair in model["merges"]]
    theirs = transformers.CLIPTokenizerFast(vocab=vocabulary, merges=merges, model_max_length=77)
    theirs.save_pretrained(folder)
    return theirs, vocabulary, merges


def t5(folder):
    library = Library(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>")
    library.train_from_iterator(CORPUS, trainer)
    vocabulary = [tuple(piece) for piece in json.loads(library.to_str())["model"]["vocab"]]
    theirs = transformers.T5TokenizerFast(vocab=vocabulary, extra_ids=4)
    theirs.save_pretrained(folder)
    return theirs


def bert(folder):
    library = Library(models.WordPiece(unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    library.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=70, special_tokens=special)
    )
    theirs = transformers.BertTokenizerFast(vocab=library.get_vocab())
    theirs.save_pretrained(folder)
    return theirs


def gemma(folder):
    library = Library(models.BPE(unk_token="<unk>"))
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    library.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=70, special_tokens=special))
    model = json.loads(library.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    theirs = transformers.GemmaTokenizer(vocab=model["vocab"], merges=merges, padding_side="left")
    theirs.save_pretrained(folder)
    return theirs


def assert_same(ours, theirs, prompts, length):
    expected = theirs(
        prompts, padding="max_length", max_length=length, truncation=True, return_tensors="np"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tests/data tests the warnings on prompts that are cut
        ids, mask = ours.encode(prompts, length, theirs.padding_side)
    np.testing.assert_array_equal(ids, expected["input_ids"])
    np.testing.assert_array_equal(mask, expected["attention_mask"])
    assert ours.padding_id == theirs.pad_token_id and ours.num_tokens == len(theirs)
    assert len(np.unique(ids)) > 20 and 0.2 < mask.mean() < 0.8


@pytest.mark.parametrize("build", [clip, t5, bert, gemma])
def test_saved_ones_agree(tmp_path, build):
    theirs = build(tmp_path)
    theirs = theirs[0] if build is clip else theirs
    assert_same(Tokenizer(tmp_path), theirs, PROMPTS, 77)


@pytest.mark.parametrize("padding", ["<|endoftext|>", "!"])
def test_vocabulary_and_merges_of_clip(tmp_path, padding):
    """Files as in Stable Diffusion's folders, one of which pads with "!"."""
    theirs, vocabulary, merges = clip(tmp_path / "theirs")
    theirs.pad_token = padding
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    described = lambda content: dict(
        __type="AddedToken", content=content, lstrip=False, normalized=True
    )
    config = dict(
        bos_token=described("<|startoftext|>"),
        eos_token=described("<|endoftext|>"),
        pad_token=padding,
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | dict(tokenizer_class="CLIPTokenizer"))
    )
    assert_same(Tokenizer(folder), theirs, PROMPTS, 77)


def test_minilm():
    """The names of the emoji, some of which are longer than the length."""
    captions = [texts[0] for texts in load_dataset("emoji", "test").captions]
    theirs = transformers.AutoTokenizer.from_pretrained(minilm_folder())
    assert_same(Tokenizer(minilm_folder()), theirs, captions + PROMPTS, 12)
