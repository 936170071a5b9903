"""Vocabularies cut to what texts need: which tokens stay, and the tokenizer rewritten for them.

Single characters (bytes, in a byte-level vocabulary) always stay, so that whatever could be tokenized still can be:
a word whose own token is gone becomes the pieces that are left.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from toolkit.errors import InputError

# Files that say what tokenizer.json says, for other readers; they would contradict it.
OTHER_FILES = ("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model")


def read(folder: Path) -> dict[str, Any]:
    """The tokenizer.json of a checkpoint. Raises InputError for a kind that cannot be cut."""
    path = folder / "tokenizer.json"
    try:
        tokenizer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = tokenizer["model"]["type"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a tokenizer file.") from error
    if kind not in ("WordPiece", "BPE", "Unigram"):
        raise InputError(f"{path}: a vocabulary of the kind '{kind}' cannot be cut; known: WordPiece, BPE, Unigram.")
    return tokenizer


def tokens(tokenizer: Mapping[str, Any]) -> list[str]:
    """All tokens of the model in the order of their ids, then the added ones that the model does not have."""
    model = tokenizer["model"]
    if model["type"] == "Unigram":
        listed = [piece for piece, _ in model["vocab"]]
    else:
        listed = [""] * (max(model["vocab"].values(), default=-1) + 1)
        for token, index in model["vocab"].items():
            listed[index] = token
    for added in sorted(tokenizer.get("added_tokens", []), key=lambda entry: entry["id"]):
        while len(listed) <= added["id"]:
            listed.append("")
        listed[added["id"]] = added["content"]
    return listed


def _always(tokenizer: Mapping[str, Any], listed: list[str]) -> set[int]:
    """Ids that stay whatever the texts are: special tokens and everything that is a single character."""
    model = tokenizer["model"]
    prefix = model.get("continuing_subword_prefix") or ("" if model["type"] == "BPE" else "▁")
    marks = {entry["content"] for entry in tokenizer.get("added_tokens", [])} | {model.get("unk_token")}
    kept = set()
    for index, token in enumerate(listed):
        a_byte = model["type"] != "WordPiece" and token.startswith("<0x") and token.endswith(">")
        if token in marks or a_byte or len(token.removeprefix(prefix)) <= 1:
            kept.add(index)
    if model["type"] == "Unigram" and model.get("unk_id") is not None:
        kept.add(model["unk_id"])
    return kept


def _with_parts(tokenizer: Mapping[str, Any], listed: list[str], kept: set[int]) -> set[int]:
    """For BPE: also the tokens from which the kept ones are merged."""
    model = tokenizer["model"]
    if model["type"] != "BPE":
        return kept
    place = {token: index for index, token in enumerate(listed)}
    parts: dict[int, tuple[int, int]] = {}
    for merge in model["merges"]:
        left, right = _pair(merge)
        if left + right in place:
            parts.setdefault(place[left + right], (place[left], place[right]))
    whole, waiting = set(kept), list(kept)
    while waiting:
        for part in parts.get(waiting.pop(), ()):
            if part not in whole:
                whole.add(part)
                waiting.append(part)
    return whole


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def count(encode: Any, texts: Iterable[str]) -> Counter[int]:
    """How often each id occurs. `encode` gives a text's ids."""
    found: Counter[int] = Counter()
    for text in texts:
        found.update(encode(text))
    return found


def check(tokenizer: Mapping[str, Any], limit: int | None) -> None:
    """Refuse a vocabulary that has no tokens, and a `limit` below what must stay. Raises InputError."""
    _least(tokenizer, tokens(tokenizer), limit)


def _least(tokenizer: Mapping[str, Any], listed: list[str], limit: int | None) -> set[int]:
    """The ids that stay whatever the texts are."""
    if not tokenizer["model"]["vocab"]:
        raise InputError("The tokenizer has an empty vocabulary.")
    kept = _with_parts(tokenizer, listed, _always(tokenizer, listed))
    if limit is not None and limit < len(kept):
        raise InputError(
            f"A vocabulary of {limit} tokens is too small: the {len(kept)} characters and marks must stay."
        )
    return kept


def choose(tokenizer: Mapping[str, Any], counts: Counter[int], coverage: float, limit: int | None = None) -> list[int]:
    """The ids that stay, ascending: characters and special tokens, then the most frequent ones until they are
    `coverage` of all tokens counted, at most `limit` in all. Raises InputError if nothing was counted."""
    if not 0 <= coverage <= 1:
        raise InputError(f"A coverage of {coverage} lies outside 0 to 1.")
    total = sum(counts.values())
    if total == 0:
        raise InputError("There is no text to choose a vocabulary from.")
    listed = tokens(tokenizer)
    kept = _least(tokenizer, listed, limit)
    covered = sum(counts[index] for index in kept)
    for index in sorted(counts, key=lambda each: (-counts[each], each)):
        if covered >= coverage * total:
            break
        more = _with_parts(tokenizer, listed, {index}) - kept
        if limit is not None and len(kept) + len(more) > limit:
            break
        covered += sum(counts[each] for each in more)
        kept |= more
    return sorted(index for index in kept if index < len(listed) and listed[index])


def rewrite(tokenizer: Mapping[str, Any], kept: list[int]) -> dict[str, Any]:
    """The tokenizer with the kept tokens only, numbered anew in their order."""
    new = copy.deepcopy(dict(tokenizer))
    listed = tokens(tokenizer)
    place = {old: index for index, old in enumerate(kept)}
    by_token = {listed[old]: index for old, index in place.items()}
    model = new["model"]
    if model["type"] == "Unigram":
        scores = model["vocab"]
        if any(old >= len(scores) for old in kept[: len(kept) - _added_behind(tokenizer, kept)]):
            raise InputError("This tokenizer mixes added tokens into its vocabulary; it cannot be cut.")
        model["vocab"] = [scores[old] for old in kept if old < len(scores)]
        if model.get("unk_id") is not None:
            model["unk_id"] = place[model["unk_id"]]
    else:
        model["vocab"] = {token: by_token[token] for token in model["vocab"] if token in by_token}
    if model["type"] == "BPE":
        model["merges"] = [
            merge for merge in model["merges"]
            if all(part in by_token for part in (*_pair(merge), "".join(_pair(merge))))
        ]  # fmt: skip
    for entry in new.get("added_tokens", []):
        entry["id"] = place[entry["id"]]
    if new.get("post_processor"):
        _renumber(new["post_processor"], by_token)
    for part in ("truncation", "padding"):
        new[part] = None
    return new


def _added_behind(tokenizer: Mapping[str, Any], kept: list[int]) -> int:
    """How many of the kept ids are added tokens behind the model's own."""
    own = len(tokenizer["model"]["vocab"])
    return sum(old >= own for old in kept)


def _renumber(processor: dict[str, Any], by_token: Mapping[str, int]) -> None:
    """Give the marks that a post-processor adds their new ids."""
    for each in processor.get("processors", []):
        _renumber(each, by_token)
    for key in ("sep", "cls"):  # BertProcessing, RobertaProcessing: [token, id]
        if isinstance(processor.get(key), list):
            processor[key][1] = by_token[processor[key][0]]
    for name, entry in (processor.get("special_tokens") or {}).items():  # TemplateProcessing
        entry["ids"] = [by_token[token] for token in entry.get("tokens", [name])]


def rewrite_config(config: Mapping[str, Any], kept: list[int]) -> dict[str, Any]:
    """`tokenizer_config.json` with the new ids of the added tokens."""
    new = copy.deepcopy(dict(config))
    place = {old: index for index, old in enumerate(kept)}
    if "added_tokens_decoder" in new:
        new["added_tokens_decoder"] = {
            str(place[int(old)]): entry for old, entry in new["added_tokens_decoder"].items() if int(old) in place
        }
    return new
