"""Texts that try a tokenizer: random strings from all planes of Unicode, and chosen ones that are known to be hard."""

from __future__ import annotations

import random

# Where the random characters come from: first and last code point. No surrogates (they are not characters).
BLOCKS = {
    "control": (0x00, 0x1F),
    "ascii": (0x20, 0x7E),
    "latin 1 and its controls": (0x7F, 0xFF),
    "latin extended": (0x100, 0x24F),
    "modifiers and combining marks": (0x2B0, 0x36F),
    "greek": (0x370, 0x3FF),
    "cyrillic": (0x400, 0x52F),
    "hebrew": (0x590, 0x5FF),
    "arabic": (0x600, 0x6FF),
    "devanagari": (0x900, 0x97F),
    "thai": (0xE00, 0xE7F),
    "hangul letters": (0x1100, 0x11FF),
    "latin additional": (0x1E00, 0x1EFF),
    "spaces, zero width and punctuation": (0x2000, 0x206F),
    "currency and letter-like": (0x20A0, 0x214F),
    "arrows and mathematics": (0x2190, 0x22FF),
    "symbols": (0x2600, 0x27BF),
    "cjk punctuation and kana": (0x3000, 0x30FF),
    "cjk": (0x4E00, 0x9FFF),
    "hangul": (0xAC00, 0xD7A3),
    "private use": (0xE000, 0xF8FF),
    "cjk compatibility": (0xF900, 0xFAFF),
    "arabic presentation": (0xFB50, 0xFDFF),
    "variation selectors": (0xFE00, 0xFE0F),
    "full width": (0xFF00, 0xFFEF),
    "specials": (0xFFF0, 0xFFFF),
    "gothic": (0x10330, 0x1034F),
    "mathematical letters": (0x1D400, 0x1D7FF),
    "emoji": (0x1F300, 0x1FAFF),
    "cjk extension B": (0x20000, 0x2A6DF),
    "planes that nothing is assigned in": (0x30000, 0xDFFFF),
    "tags": (0xE0000, 0xE007F),
    "private use, plane 15": (0xF0000, 0xFFFFF),
    "private use, plane 16": (0x100000, 0x10FFFF),
}
CHOSEN = (
    "",
    " ",
    " \t\r\n\x0b\x0c\u00a0\u2003\u3000",
    "\0",
    "a\0b",
    "\ufeffmark at the start",
    "zero\u200bwidth\u200c \u200djoiner\u2060",
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪 1️⃣",
    "e\u0301 \u00e9 Å \u212b A\u030a",
    "Zalgo t\u0300\u0301\u0302\u0303\u0304ext",
    "ﬁ ﬂ \u017f \u0130 \u0131 ß ẞ Ǆ",
    "中文字符と日本語 한국어 각 ㄱㅏㄱ",
    "مرحبا بالعالم ﷺ",
    "[CLS] [SEP] [PAD] [MASK] [UNK] [cls] ##ing",
    "don't U.S.A. $3.50 x=1;y--",
    "a" * 99,
    "a" * 100,
    "a" * 101,
    "pneumono" * 500,
    "word " * 600,
    "中" * 600,
    "-" * 600,
)


def random_text(generator: random.Random, words: list[str]) -> str:
    """A string of one to five runs, each from one block or out of a real word, some in mixed case, some glued, some
    joined by U+200D."""
    runs = []
    for _ in range(generator.randint(1, 5)):
        first, last = BLOCKS[generator.choice(list(BLOCKS))]
        run = "".join(chr(generator.randint(first, last)) for _ in range(generator.randint(1, 12)))
        if generator.random() < 0.3:
            run = generator.choice(words)[generator.randint(0, 2) :]
        runs.append(generator.choice((str, str.upper, str.title, str.swapcase))(run))
    return generator.choice(("", " ", "\u200d", "\u0301", "  ", "\n")).join(runs)


def random_texts(count: int, words: list[str], seed: int = 0) -> list[str]:
    """The chosen strings and as many random ones as make `count`, the same ones for a seed."""
    generator = random.Random(seed)
    return [*CHOSEN, *(random_text(generator, words) for _ in range(count - len(CHOSEN)))]
