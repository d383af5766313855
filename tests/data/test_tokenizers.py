"""Tokenizers that are trained here; tests/parity compares with transformers."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, processors

from genjax.data.tokenizers import Tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "apple", "app", "##le", "##s"]


@pytest.fixture
def folder(tmp_path):
    library = Library(
        models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    library.enable_truncation(3)  # a length stored in the file is ignored
    library.enable_padding(length=3)
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(pad_token="[PAD]")))
    return tmp_path


def test_tokens_and_padding(folder):
    tokenizer = Tokenizer(folder)
    ids, mask = tokenizer.encode(["a red apple", "", "blue apples"], 6)
    np.testing.assert_array_equal(ids, [[2, 4, 5, 6, 3, 0], [2, 3, 0, 0, 0, 0], [2, 1, 6, 9, 3, 0]])
    np.testing.assert_array_equal(
        mask, [[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]]
    )
    assert ids.dtype == np.int32 and mask.dtype == bool
    assert (tokenizer.padding_id, tokenizer.num_tokens) == (0, len(WORDS))
    assert [a.shape for a in tokenizer.encode([], 6)] == [(0, 6), (0, 6)]
    # Each call has its own length and side.
    ids, mask = tokenizer.encode(["a"], 5, "left")
    np.testing.assert_array_equal(ids, [[0, 0, 2, 4, 3]])
    np.testing.assert_array_equal(mask, [[0, 0, 1, 1, 1]])
    np.testing.assert_array_equal(tokenizer.encode(["a"], 4)[0], [[2, 4, 3, 0]])


def test_what_is_cut_is_named_and_the_end_is_marked(folder):
    with pytest.warns(
        UserWarning, match="of a prompt only 4 tokens are kept; lost: ' apple a'"
    ) as caught:
        ids, mask = Tokenizer(folder).encode(["a red", "a red apple a"], 4)
    assert len(caught) == 1
    np.testing.assert_array_equal(ids, [[2, 4, 5, 3], [2, 4, 5, 3]])
    assert mask.all()


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("tokenizer_config.json", "apple"),
        ("special_tokens_map.json", "apple"),
        ("special_tokens_map.json", dict(content="apple", single_word=False)),
    ],
)
def test_padding_is_the_token_that_is_named(folder, name, entry):
    (folder / "tokenizer_config.json").unlink()
    (folder / name).write_text(json.dumps(dict(pad_token=entry)))
    ids, mask = Tokenizer(folder).encode(["apple"], 5)
    np.testing.assert_array_equal(ids, [[2, 6, 3, 6, 6]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0, 0]])


def test_a_length_without_a_place_for_the_prompt_is_refused(folder):
    with pytest.raises(ValueError, match="length=2 leaves no place for a prompt: .* adds 2 tokens"):
        Tokenizer(folder).encode(["a red"], 2)


def test_faults(folder):
    with pytest.raises(ValueError, match="prompts is the string 'a red'.* put it in a list"):
        Tokenizer(folder).encode("a red", 4)
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(pad_token="blue")))
    with pytest.raises(
        ValueError, match="names 'blue' as its padding token, which is not in the vocabulary"
    ):
        Tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="names None as its padding token"):
        Tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(
        FileNotFoundError, match="neither tokenizer.json nor vocab.*with sentencepiece and.*AutoTok"
    ):
        Tokenizer(folder)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("tokenizer.json", b'{"model"', "tokenizer.json is not a tokenizer: EOF"),
        ("tokenizer.json", b"{}", "tokenizer.json is not a tokenizer: "),
        ("tokenizer.json", b"\xff\xfe", "tokenizer.json is not a tokenizer: "),
        (
            "tokenizer_config.json",
            b'{"pad',
            "tokenizer_config.json is not a JSON object: Unterminated",
        ),
        ("tokenizer_config.json", b"3", "tokenizer_config.json is not a JSON object: "),
        (
            "tokenizer_config.json",
            b'{"pad_token": 3}',
            "names 3 as its padding token, which is not in the vocabulary",
        ),
        ("tokenizer_config.json", b'{"pad_token": {}}', "names None as its padding token"),
        (
            "vocab.json",
            b"[",
            "names no bos_token and no eos_token: add them to tokenizer_config.json",
        ),
        (
            "special_tokens_map.json",
            b'{"bos_token": "a", "eos_token": "b"}',
            "does not hold CLIP's vocab.json and merges",
        ),
    ],
)
def test_damaged_files_are_named(folder, file, text, message):
    if file in ("vocab.json", "special_tokens_map.json"):  # CLIP's files replace tokenizer.json
        (folder / "tokenizer.json").unlink()
        for name in ("vocab.json", "merges.txt"):
            (folder / name).write_text("[")
    (folder / file).write_bytes(text)
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
