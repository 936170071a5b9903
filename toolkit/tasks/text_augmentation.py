"""Augmentation of texts: words that are missing, words that exchange their places, wrong letters.

Needs no dictionary and no network. A word is what stands between spaces; a letter is a character with all that belongs
to it, such as accents, so that none is torn apart. Wrong letters are taken from the text itself and so are of its
script.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Sequence

import numpy as np
from pydantic import Field

from toolkit.tasks.augmentation import Augmentation

_GAP = re.compile(r"(\s+)")
_JOINER = "\u200d"  # keeps the emoji around it together


class TextAugmentation(Augmentation):
    """Chances of a word: `word_dropout` of being left out (Iyyer et al., 2015), `word_swap` of exchanging its place
    with another one (Wei and Zou, 2019), `typos` of one wrong letter (Belinkov and Bisk, 2018)."""

    word_dropout: float = Field(0.0, ge=0, lt=1)
    word_swap: float = Field(0.0, ge=0, le=1)
    typos: float = Field(0.0, ge=0, le=1)


def changed(text: str, settings: TextAugmentation, generator: np.random.Generator) -> str:
    """A text after what the settings ask for; the spaces between its words stay as they are. Never empty."""
    pieces = _GAP.split(text.strip())
    words, gaps = pieces[::2], ["", *pieces[1::2]]
    places = remaining(len(words), settings.word_dropout, generator)
    order = exchanged([0] * len(places), settings.word_swap, generator)
    said = misspelt([words[places[place]] for place in order], settings.typos, generator)
    return said[0] + "".join(gaps[place] + word for place, word in zip(places[1:], said[1:], strict=True))


def remaining(count: int, chance: float, generator: np.random.Generator) -> list[int]:
    """The places of `count` words of which each is left out by chance; one stays in any case."""
    places = np.flatnonzero(generator.random(count) >= chance)
    return places.tolist() if places.size else [int(generator.integers(count))]


def exchanged(kinds: Sequence[Hashable], chance: float, generator: np.random.Generator) -> list[int]:
    """An order of words in which each has by chance exchanged its place with another one of its kind."""
    order = list(range(len(kinds)))
    for place in np.flatnonzero(generator.random(len(kinds)) < chance).tolist():
        others = [other for other in range(len(kinds)) if other != place and kinds[other] == kinds[place]]
        if others:
            other = others[generator.integers(len(others))]
            order[place], order[other] = order[other], order[place]
    return order


def misspelt(words: Sequence[str], chance: float, generator: np.random.Generator) -> list[str]:
    """Words of which each has by chance one wrong letter; not those of one letter."""
    found = list(words)
    chosen = np.flatnonzero(generator.random(len(words)) < chance).tolist()
    if chosen:
        alphabet = sorted({letter for word in words for letter in letters(word) if letter[0].isalnum()})
        for place in chosen:
            found[place] = "".join(_typo(letters(words[place]), alphabet, generator))
    return found


def _typo(word: list[str], alphabet: Sequence[str], generator: np.random.Generator) -> list[str]:
    """A word with a letter too few, one too many, another one, or two in the wrong order."""
    if len(word) < 2:
        return word
    kind = generator.choice(("drop", "insert", "replace", "transpose"))
    place = int(generator.integers(len(word)))
    if kind == "drop":
        return word[:place] + word[place + 1 :]
    if kind == "transpose":
        unlike = [at for at in range(len(word) - 1) if word[at] != word[at + 1]]
        if not unlike:
            return word
        place = unlike[generator.integers(len(unlike))]
        return [*word[:place], word[place + 1], word[place], *word[place + 2 :]]
    taken = word[place] if kind == "replace" else None
    others = [letter for letter in alphabet if letter != taken]
    if not others:
        return word
    letter = others[generator.integers(len(others))]
    return [*word[:place], letter, *word[place + (kind == "replace") :]]


def letters(word: str) -> list[str]:
    """The characters of a word, each with the marks, joined emoji and other parts that belong to it."""
    found: list[str] = []
    for character in word:
        if found and _belongs(character, found[-1]):
            found[-1] += character
        else:
            found.append(character)
    return found


def _belongs(character: str, before: str) -> bool:
    """Whether a character is a part of what stands before it: most of the rules of Unicode's annex 29."""
    return (
        unicodedata.category(character).startswith("M")
        or character in (_JOINER, "\u200c")
        or before.endswith(_JOINER)
        or "\U0001f3fb" <= character <= "\U0001f3ff"  # colours of skin
        or "\U000e0020" <= character <= "\U000e007f"  # tags, of regional flags
        or "\u1160" <= character <= "\u11ff"  # vowels and finals of Korean syllables
        or (_is_flag_half(character) and len(before) == 1 and _is_flag_half(before))
    )


def _is_flag_half(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"
