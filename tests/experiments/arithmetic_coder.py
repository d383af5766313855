"""An arithmetic coder (Witten, Neal & Cleary 1987) of sequences whose laws are told in turn."""

import numpy as np

PRECISION = 32
FULL, HALF, QUARTER = 2**PRECISION, 2 ** (PRECISION - 1), 2 ** (PRECISION - 2)
TOTAL = 2**18  # of the frequencies


def frequencies(law):
    """Return where each symbol's share of 0 … TOTAL starts, and the end; no share is empty."""
    counts = 1 + np.floor(law / law.sum() * (TOTAL - len(law))).astype(int)
    counts[np.argmax(counts)] += TOTAL - counts.sum()
    return np.concatenate([[0], np.cumsum(counts)])


def narrowed(low, high, edges, symbol):
    span = high - low
    return low + span * int(edges[symbol]) // TOTAL, low + span * int(edges[symbol + 1]) // TOTAL


def encode(laws, tokens):
    """Return the bits of `tokens` `[sequences places]`, whose places are coded one by one.

    Args:
        laws: a generator that yields probabilities `[sequences symbols]` of each place, and is sent
            the place's tokens.
    """
    low, high, pending, bits = 0, FULL, 0, []
    law = next(laws)
    for place in range(tokens.shape[1]):
        for each, symbol in zip(law, tokens[:, place], strict=True):
            low, high = narrowed(low, high, frequencies(each), symbol)
            while True:
                if high <= HALF or low >= HALF:
                    bit = int(low >= HALF)
                    bits += [bit] + [1 - bit] * pending
                    pending, shift = 0, bit * HALF
                elif low >= QUARTER and high <= 3 * QUARTER:
                    pending, shift = pending + 1, QUARTER
                else:
                    break
                low, high = 2 * (low - shift), 2 * (high - shift)
        if place + 1 < tokens.shape[1]:
            law = laws.send(tokens[:, place])
    bit = int(low >= QUARTER)
    return bits + [bit] + [1 - bit] * (pending + 1)


class decoder:
    """Decode what `encode` returned."""

    def __init__(self, bits):
        self.bits = iter(bits)
        self.low, self.high, self.value = 0, FULL, 0
        for _ in range(PRECISION):
            self.value = 2 * self.value + next(self.bits, 0)

    def decode(self, laws, shape):
        tokens, law = np.zeros(shape, int), next(laws)
        for place in range(shape[1]):
            tokens[:, place] = [self.symbol(frequencies(each)) for each in law]
            if place + 1 < shape[1]:
                law = laws.send(tokens[:, place])
        return tokens

    def symbol(self, edges):
        span = self.high - self.low
        share = ((self.value - self.low + 1) * TOTAL - 1) // span
        symbol = int(np.searchsorted(edges, share, side="right")) - 1
        self.low, self.high = narrowed(self.low, self.high, edges, symbol)
        while True:
            if self.high <= HALF or self.low >= HALF:
                shift = HALF * (self.low >= HALF)
            elif self.low >= QUARTER and self.high <= 3 * QUARTER:
                shift = QUARTER
            else:
                return symbol
            self.low, self.high = 2 * (self.low - shift), 2 * (self.high - shift)
            self.value = 2 * (self.value - shift) + next(self.bits, 0)
