"""Whether texts are texts: how surprising their tokens are, by how often each occurs in texts of the task."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


class Unigrams:
    """How often each token occurs in texts, every token of the vocabulary being counted once more."""

    def __init__(self, tokens: Sequence[Sequence[int]], vocabulary: int) -> None:
        self.counts = Counter(index for ids in tokens for index in ids)
        self.vocabulary = vocabulary
        self.total = sum(self.counts.values()) + vocabulary

    def bits(self, tokens: Sequence[Sequence[int]]) -> float:
        """Mean surprise of a token in bits: the cross entropy of these texts under the distribution."""
        found = [index for ids in tokens for index in ids]
        return sum(-math.log2((self.counts[index] + 1) / self.total) for index in found) / max(len(found), 1)

    def random_bits(self) -> float:
        """The same for tokens that are drawn evenly from the vocabulary."""
        unseen = self.vocabulary - len(self.counts)
        seen = sum(-math.log2((count + 1) / self.total) for count in self.counts.values())
        return (seen + unseen * math.log2(self.total)) / self.vocabulary


def randomness(real: Sequence[Sequence[int]], given: Sequence[Sequence[int]], vocabulary: int) -> float:
    """Where the given tokens stand between the real texts (0) and tokens drawn at random (1).

    By unigram surprise: one half of the real texts gives the distribution, the other half says how surprising real
    texts are under it. The order of tokens does not matter to it: shuffled sentences pass, and their activations
    have nearly the range of the sentences.
    """
    distribution = Unigrams(real[::2], vocabulary)
    usual = distribution.bits(real[1::2])
    return (distribution.bits(given) - usual) / max(distribution.random_bits() - usual, 1e-9)
