"""Prompts on disk are encoded once, found again, and part of a batch."""

import numpy as np
import pytest

from genjax.data import Batches, Dataset, InMemory
from genjax.data import prompts as module
from genjax.data.prompts import PromptCache, padded, with_prompts

PROMPTS = ["a cat", "a very long red cat", "dog", "été"]


def encode_to(calls):
    def encode(prompts):
        calls.extend(prompts)
        return [
            {
                "tokens": np.array(
                    [[len(word), i] for i, word in enumerate(prompt.split())], np.float32
                ),
                "pooled": np.array([len(prompt)], np.float32),
            }
            for prompt in prompts
        ]

    return encode


@pytest.fixture
def cache(tmp_path):
    cache = PromptCache(tmp_path, "words")
    list(cache.add(PROMPTS, encode_to([])))
    return cache


def test_none_is_encoded_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 2)
    calls = []
    assert list(
        PromptCache(tmp_path, "words").add([*PROMPTS[:3], "dog"], encode_to(calls), batch_size=1)
    ) == [1, 2, 3]
    again = PromptCache(tmp_path, "words")
    assert "dog" in again and "été" not in again
    list(again.add(PROMPTS, encode_to(calls)))
    assert sorted(calls) == sorted(PROMPTS)
    for prompt, expected in zip(PROMPTS, encode_to([])(PROMPTS), strict=True):
        for each in (again, PromptCache(tmp_path, "words")):
            assert each[prompt].keys() == expected.keys()
            for key, array in expected.items():
                np.testing.assert_array_equal(each[prompt][key], array)


def test_files_are_those_of_every_locale(cache):
    """Not all machines write UTF-8 by default."""
    (listing,) = set(cache.folder.glob("*.json")) - {cache.folder / module.ORIGIN}
    assert listing.read_bytes().isascii()


def test_two_processes_of_one_number_may_encode_the_same(tmp_path):
    """In containers processes have the same numbers. Here one encodes all while another does."""
    first = PromptCache(tmp_path, "words").add(PROMPTS, encode_to([]), batch_size=1)
    next(first)
    list(PromptCache(tmp_path, "words").add(PROMPTS, encode_to([])))
    list(first)
    cache = PromptCache(tmp_path, "words")
    assert [cache[prompt]["pooled"] for prompt in PROMPTS] == [len(prompt) for prompt in PROMPTS]


def test_what_is_whole_is_kept_when_the_encoder_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 2)

    def fail_at_last(prompts):
        if PROMPTS[3] in prompts:
            raise RuntimeError("out of memory")
        return encode_to([])(prompts)

    with pytest.raises(RuntimeError):
        list(PromptCache(tmp_path, "words").add(PROMPTS, fail_at_last, batch_size=1))
    cache = PromptCache(tmp_path, "words")
    assert [prompt in cache for prompt in PROMPTS] == [True, True, False, False]


def test_another_encoder_is_refused(cache, tmp_path):
    with pytest.raises(ValueError, match="encoded by words, not by letters"):
        PromptCache(tmp_path, "letters")


def test_padding_is_masked_and_long_prompts_are_cut(cache):
    short, long = padded(cache["a cat"], 3), padded(cache["a very long red cat"], 3)
    np.testing.assert_array_equal(short["tokens"], [[1, 0], [3, 1], [0, 0]])
    np.testing.assert_array_equal(short["mask"], [True, True, False])
    np.testing.assert_array_equal(long["tokens"], [[1, 0], [4, 1], [4, 2]])
    assert long["mask"].all() and long["pooled"] == [19]


def test_batches_hold_one_of_each_examples_captions(cache):
    captions = [("a cat", "a very long red cat", "dog"), ("été",)]
    images = np.zeros((2, 1, 1, 1), np.uint8)
    dataset = Dataset("pictures", "train", InMemory({"image": images}), captions=captions)

    def chosen(first, steps=range(300)):
        """Return the lengths of the first example's captions."""
        batches = Batches(dataset, 2, 0, transform=with_prompts(cache, captions, 5, first))
        lengths = []
        for step in steps:
            batch = batches[step]
            assert batch["tokens"].shape == (2, 5, 2) and batch["mask"].shape == (2, 5)
            lengths += [
                int(n)
                for index, n in zip(batch["index"], batch["pooled"][:, 0], strict=True)
                if index == 0
            ]
        return lengths

    assert set(chosen(1.0)) == {5}
    counts = [chosen(0.6).count(n) / 300 for n in (5, 19, 3)]
    # 300 draws: standard errors of .028 and .023.
    np.testing.assert_allclose(counts, [0.6, 0.2, 0.2], atol=0.08)
    assert chosen(0.6, range(200, 210)) == chosen(0.6)[200:210]  # a batch depends on its step only
