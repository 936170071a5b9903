"""Augmentation: what changes of an example and of a batch, that labels follow, and that only training sees it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example as for_example
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from tests.conftest import run_toolkit
from tests.networks import CLASSES, image_folder, network_file, pattern
from tests.small_inputs import one_layer
from tests.stage_runs import KilledError, kill_at, run_stage, weights
from tests.unicode_texts import random_texts
from toolkit import demo, modules, network, planning, stages, tasks, training
from toolkit.errors import InputError
from toolkit.runtime.image import ImageEncoder
from toolkit.runtime.token_classification import WordEncoder
from toolkit.tasks import image_augmentation as images
from toolkit.tasks import text_augmentation as texts
from toolkit.tasks import token_classification
from toolkit.tasks.augmentation import mixup, soft
from toolkit.tasks.image_augmentation import ImageAugmentation
from toolkit.tasks.task import Example
from toolkit.tasks.text_augmentation import TextAugmentation

pytestmark = pytest.mark.usefixtures("torch_as_before")

SEED = st.integers(0, 2**32 - 1)
MUCH = TextAugmentation(word_dropout=0.4, word_swap=0.4, typos=0.5)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Texts


@given(st.text(min_size=1).filter(str.strip), SEED)
@for_example("👩\u200d👩\u200d👧 e\u0301 🇩🇪🇫🇷", 1)
def test_a_changed_text_is_a_text(text: str, seed: int) -> None:
    said = texts.changed(text, MUCH, generator(seed))
    assert said.strip() == said and said
    assert len(said.split()) <= len(text.split())
    said.encode()  # hypothesis gives no half of a surrogate pair, and none may come to be


def test_hard_texts_keep_their_letters_whole() -> None:
    """Every letter of the result, with its accents and what else belongs to it, is one of the text."""
    flags = re.compile("[\U0001f1e6-\U0001f1ff]")  # halves of flags pair otherwise if one is missing
    checked = 0
    for number, each in enumerate(random_texts(400, ["film", "naïve"])):
        text = flags.sub("", each)
        if text.strip():
            said = texts.changed(text, MUCH, generator(number))
            known = {letter for word in text.split() for letter in texts.letters(word)}
            ends = {letter for letter in known if letter.endswith("\u200d")}  # it glues whatever comes next
            starts = {letter for letter in known if texts._belongs(letter[0], "a")}  # and these glue to what is before
            if not ends and not starts:
                checked += 1
                assert {letter for word in said.split() for letter in texts.letters(word)} <= known
    assert checked > 100


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("film", ["f", "i", "l", "m"]),
        ("cafe\u0301s", ["c", "a", "f", "e\u0301", "s"]),
        ("नमस्ते", ["न", "म", "स्", "ते"]),
        ("👩\u200d👩\u200d👧\u200d👦!", ["👩\u200d👩\u200d👧\u200d👦", "!"]),
        ("👍🏽👍", ["👍🏽", "👍"]),
        ("🇩🇪🇫🇷", ["🇩🇪", "🇫🇷"]),
        ("\u1112\u1161\u11ab\u1100\u1173", ["\u1112\u1161\u11ab", "\u1100\u1173"]),
        ("1\ufe0f\u20e3", ["1\ufe0f\u20e3"]),
        ("", []),
    ],
)
def test_letters_are_what_a_reader_sees_as_one(word: str, expected: list[str]) -> None:
    assert texts.letters(word) == expected


def test_words_are_left_out_at_their_rate_and_the_others_stay_as_they_were() -> None:
    words = [f"word{number}" for number in range(4000)]
    said = texts.changed("  ".join(words), TextAugmentation(word_dropout=0.2), generator())
    left = said.split("  ")
    assert abs(len(left) / 4000 - 0.8) < 0.03
    assert set(left) <= set(words) and left == sorted(left, key=words.index)
    assert texts.remaining(3, 0.999999999, generator()) in ([0], [1], [2])
    assert texts.changed("alone", TextAugmentation(word_dropout=0.99), generator()) == "alone"


def test_words_exchange_their_places_at_their_rate() -> None:
    order = texts.exchanged([0] * 4000, 0.1, generator())
    assert sorted(order) == list(range(4000))
    moved = np.mean([place != now for place, now in enumerate(order)])
    assert abs(moved - 2 * 0.1 * (1 - 0.1 / 2)) < 0.03  # two words move at a time
    assert texts.exchanged([0] * 50, 0.0, generator()) == list(range(50))
    assert texts.exchanged([1], 1.0, generator()) == [0]
    kinds = [number % 3 for number in range(300)]
    assert [kinds[place] for place in texts.exchanged(kinds, 0.9, generator())] == kinds


def distance(first: str, second: str) -> int:
    """Edits from one word to another: drop, insert, replace, or exchange two neighbours."""
    table = np.add.outer(np.arange(len(first) + 1), np.arange(len(second) + 1))
    for i in range(1, len(first) + 1):
        for j in range(1, len(second) + 1):
            same = first[i - 1] == second[j - 1]
            found = [table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (not same)]
            if i > 1 and j > 1 and first[i - 2 : i] == second[j - 2 : j][::-1]:
                found.append(table[i - 2, j - 2] + 1)
            table[i, j] = min(found)
    return int(table[-1, -1])


def test_typos_are_one_letter_of_the_text_at_their_rate() -> None:
    words = ["quiet", "brilliant", "and", "loud", "a"] * 800
    said = texts.misspelt(words, 0.25, generator())
    distances = [distance(word, new) for word, new in zip(words, said, strict=True)]
    assert max(distances) == 1
    assert all(new == "a" for word, new in zip(words, said, strict=True) if word == "a")  # too short
    long_ = [d for word, d in zip(words, distances, strict=True) if len(word) > 1]
    assert abs(np.mean(long_) - 0.25) < 0.03
    assert set("".join(said)) <= set("".join(words))
    lengths = {len(new) - len(word) for word, new in zip(words, said, strict=True)}
    assert lengths == {-1, 0, 1}
    assert texts.misspelt(["--", "!!"], 1.0, generator()) in (["--", "!!"], ["-", "!!"], ["--", "!"], ["-", "!"])


NAMES = ["O", "B-film", "I-film", "B-person", "I-person"]
TAGGED = st.lists(st.sampled_from(["O", "film", "person"]), min_size=1, max_size=30).flatmap(
    lambda kinds: st.tuples(st.just(kinds), st.lists(st.booleans(), min_size=len(kinds), max_size=len(kinds)))
)


@given(TAGGED, SEED)
def test_words_keep_their_tags_and_entities_stay_well_formed(sentence: Any, seed: int) -> None:
    kinds, begins = sentence
    tags = []
    for place, (kind, begin) in enumerate(zip(kinds, begins, strict=True)):
        inside = place > 0 and kinds[place - 1] == kind and not begin
        tags.append("O" if kind == "O" else f"{'I' if inside else 'B'}-{kind}")
    words = [f"{place}-{kind}" for place, kind in enumerate(kinds)]
    settings_ = TextAugmentation(word_dropout=0.3, word_swap=0.5)
    found = token_classification.augmented(
        Example(words, [NAMES.index(tag) for tag in tags]), settings_, generator(seed), NAMES
    )
    new = [NAMES[label] for label in found.label]
    assert 1 <= len(found.input) == len(new)
    assert len(set(found.input)) == len(found.input) and set(found.input) <= set(words)
    for place, (word, tag) in enumerate(zip(found.input, new, strict=True)):
        assert word.partition("-")[2] == (tag if tag == "O" else tag[2:])
        assert not tag.startswith("I-") or new[place - 1][2:] == tag[2:]
    whole = token_classification.augmented(Example(words, [0] * len(words)), MUCH, generator(seed), NAMES)
    assert len(whole.input) == len(whole.label) and all(whole.input)
    assert token_classification.augmented(Example(words, None), MUCH, generator(seed), NAMES).label is None


def test_rows_of_a_batch_have_the_tags_of_the_words_that_are_left() -> None:
    """From the words to the tensors of a training step: answers that repeat each word's own tag are all right."""
    import torch

    task = tasks.get("token-classification")
    encoder = WordEncoder(demo.find().model / "tokenizer.json", max_length=64, inputs=("input_ids", "attention_mask"))
    sentence = ["barack", "obama", "saw", "new", "york", "again"]
    labels = [3, 4, 0, 1, 2, 0]
    augmenter = training.augmenter(task, {"word_dropout": 0.4, "word_swap": 0.3}, NAMES, 0)
    examples = training.Examples(
        task, encoder, [Example(sentence, labels)] * 20, ["input_ids", "attention_mask"], augmenter
    )
    batch = examples.batch(range(20), epoch=0)
    kind_of = {encoder.ids([word])[1]: label for word, label in zip(sentence, labels, strict=True)}
    kinds = torch.zeros((*batch.inputs["input_ids"].shape, 1), dtype=torch.long)
    for row, ids in enumerate(batch.inputs["input_ids"].tolist()):
        kinds[row, :, 0] = torch.tensor([kind_of.get(index, -9) for index in ids])
    said = task.rows(kinds, batch.arrays)[:, 0].tolist()
    assert len(said) == len(batch.labels) < 20 * 6
    begun = {4: 3, 2: 1}  # an entity that lost its beginning
    assert all(tag in (word, begun.get(word)) for word, tag in zip(said, batch.labels.tolist(), strict=True))


# Images

PIXELS = arrays_of.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3])))


@given(PIXELS, SEED)
def test_images_keep_their_size_and_two_flips_are_none(pixels: Any, seed: int) -> None:
    assert np.array_equal(images.flipped(images.flipped(pixels)), pixels)
    assert np.array_equal(images.flipped(pixels)[:, 0], pixels[:, -1])
    settings_ = ImageAugmentation(flip=0.5, crop=0.3, resized_crop=0.3)
    said = images.changed(pixels, settings_, "bilinear", generator(seed))
    assert said.shape == pixels.shape and said.dtype == np.uint8
    assert np.array_equal(images.changed(pixels, ImageAugmentation(), "bilinear", generator(seed)), pixels)


@given(PIXELS, SEED)
def test_a_moved_image_is_the_image_elsewhere(pixels: Any, seed: int) -> None:
    said = images.moved(pixels, 0.5, generator(seed))
    height, width = pixels.shape[:2]
    down, right = round(0.5 * height), round(0.5 * width)
    around = np.pad(pixels, ((down, down), (right, right), (0, 0)))
    places = [(top, left) for top in range(2 * down + 1) for left in range(2 * right + 1)]
    assert any(np.array_equal(around[top : top + height, left : left + width], said) for top, left in places)


def test_a_resized_crop_enlarges_a_part() -> None:
    columns = np.tile(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (60, 1, 1))
    spans = []
    for seed in range(200):
        said = images.resized_crop(columns, 0.25, "bilinear", generator(seed))
        assert (np.diff(said[0, :, 0].astype(int)) >= 0).all()
        spans.append(float(said[0, -1, 0]) - float(said[0, 0, 0]))
    shares = np.asarray(spans) / 236
    assert 0.35 < shares.min() < 0.6 < 0.9 < shares.max() <= 1  # a quarter of the area, stretched: 0.43 of the width
    flat = np.full((8, 6, 3), 77, dtype=np.uint8)
    assert np.array_equal(images.resized_crop(flat, 0.1, "bicubic", generator()), flat)


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.01, 0.99), SEED)
def test_a_part_lies_inside_and_is_large_enough(height: int, width: int, least: float, seed: int) -> None:
    rows, columns = images.part(height, width, least, generator(seed))
    assert 0 <= rows.start < rows.stop <= height and 0 <= columns.start < columns.stop <= width
    high, wide = rows.stop - rows.start, columns.stop - columns.start
    assert (high + 0.5) * (wide + 0.5) >= least * height * width  # whole pixels
    # As little as one pixel is rounded up to a whole one.
    assert (wide - 1) / width <= 4 / 3 * (high + 0.5) / height
    assert (high - 1) / height <= 4 / 3 * (wide + 0.5) / width


def test_geometry_acts_on_what_the_model_sees_before_it_is_normalized() -> None:
    task = tasks.get("image-classification")
    encoder = ImageEncoder({"resize": {"height": 24, "width": 24}, "channels": 1, "mean": 0.3, "std": 0.2})
    picture = pattern("waves", generator())
    found = task.augmented(Example(picture, 2), encoder, ImageAugmentation(flip=1), generator(), CLASSES)
    assert found is not None
    assert np.array_equal(found[0]["pixel_values"], encoder(picture[:, ::-1])["pixel_values"])
    assert found[1].tolist() == [2]


def stack(count: int, size: int = 8) -> Any:
    """Images of one value each, their number."""
    values = np.arange(count, dtype=np.float32)[:, None, None, None]
    return {"pixel_values": np.broadcast_to(values, (count, 1, size, size + 2)).copy()}


@given(st.integers(1, 20), SEED, st.floats(0.05, 5))
@settings(deadline=None)
def test_mixup_mixes_inputs_and_labels_by_one_share(count: int, seed: int, alpha: float) -> None:
    mixed, shares = mixup(stack(count), np.arange(count), alpha, generator(seed), count)
    assert shares.dtype == mixed["pixel_values"].dtype == np.float32
    assert shares.sum(axis=1) == pytest.approx(np.ones(count), abs=1e-5)
    assert ((shares > 0).sum(axis=1) <= 2).all()
    wanted = shares @ np.arange(count)
    assert mixed["pixel_values"].mean(axis=(1, 2, 3)) == pytest.approx(wanted, abs=1e-3)


@given(st.integers(1, 20), SEED, st.floats(0.05, 5))
@settings(deadline=None)
def test_cutmix_shares_labels_by_the_area_that_was_pasted(count: int, seed: int, alpha: float) -> None:
    before = stack(count)
    mixed, shares = images.cutmix(before, np.arange(count), alpha, generator(seed), count)
    for row, picture in enumerate(mixed["pixel_values"]):
        areas = [(picture == number).mean() for number in range(count)]
        assert shares[row] == pytest.approx(areas, abs=1e-6)
        pasted = np.argwhere(picture[0] != row)
        if pasted.size:  # one rectangle
            high, wide = pasted.max(axis=0) - pasted.min(axis=0) + 1
            assert high * wide == len(pasted)
    assert np.array_equal(before["pixel_values"], stack(count)["pixel_values"])  # the batch that was given stays


def test_a_batch_takes_one_of_the_two_mixings() -> None:
    labels = np.arange(8)
    settings_ = ImageAugmentation(mixup=1, cutmix=1)
    whole = [
        np.isin(images.mixed(stack(8), labels, settings_, generator(seed), 8)[0]["pixel_values"], labels).all()
        for seed in range(60)
    ]
    assert 15 < sum(whole) < 45
    arrays, same = images.mixed(stack(8), labels, ImageAugmentation(flip=1), generator(), 8)
    assert same is labels and np.array_equal(arrays["pixel_values"], stack(8)["pixel_values"])


def test_what_nobody_knows_stays_unknown_when_mixed() -> None:
    assert soft(np.asarray([1, -1]), 3).tolist() == [[0, 1, 0], [0, 0, 0]]
    _, shares = mixup(stack(2), np.asarray([1, -1]), 1.0, np.random.default_rng(3), 3)
    assert (shares.sum(axis=1) <= 1).all() and (shares[:, [0, 2]] == 0).all()


# The loss to soft labels


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_soft_labels_of_one_class_are_labels(smoothing: float, weighted: bool) -> None:
    import torch

    task = tasks.get("text-classification")
    torch.manual_seed(0)
    answers = torch.randn(6, 3)
    labels = torch.tensor([0, 2, -1, 1, 1, 0])
    weights = torch.tensor([0.5, 2.0, 1.2]) if weighted else None
    shares = torch.from_numpy(soft(labels.numpy(), 3))
    said, wanted = (float(task.loss(answers, each, weights=weights, smoothing=smoothing)) for each in (shares, labels))
    assert said == pytest.approx(wanted, abs=1e-6)
    assert float(task.loss(answers, shares * 0)) == 0


def test_the_loss_to_mixed_labels_is_the_mean_of_the_losses_by_their_shares() -> None:
    import torch

    task = tasks.get("image-classification")
    answers = torch.tensor([[2.0, -1.0, 0.5]])
    losses = [float(task.loss(answers, torch.tensor([label]))) for label in range(3)]
    said = float(task.loss(answers, torch.tensor([[0.3, 0.0, 0.7]])))
    assert said == pytest.approx(0.3 * losses[0] + 0.7 * losses[2], abs=1e-6)


# What is drawn when


@pytest.fixture(scope="module")
def sentences_of(prepared: Path, encoder: Path) -> Callable[..., training.Examples]:
    task = tasks.get("text-classification")

    def make(augment: dict[str, Any], seed: int = 0) -> training.Examples:
        names = ["input_ids", "attention_mask"]
        augmenter = training.augmenter(task, augment, ["negative", "positive"], seed)
        own = task.encoder(encoder, {"max_length": 64}, inputs=names)
        return training.encode(task, prepared, "train", own, names, augmenter)

    return make


def ids(batch: training.Batch) -> list[list[int]]:
    """Each example's tokens without padding."""
    mask = batch.arrays["attention_mask"].astype(bool)
    return [row[kept].tolist() for row, kept in zip(batch.arrays["input_ids"], mask, strict=True)]


def test_a_draw_follows_from_seed_epoch_and_example_alone(sentences_of: Callable[..., training.Examples]) -> None:
    some = {"word_dropout": 0.3, "word_swap": 0.2}
    examples = sentences_of(some)
    first = ids(examples.batch([3, 8, 5], epoch=1))
    assert ids(sentences_of(some).batch([8, 0], epoch=1))[0] == first[1]  # in other company, by another process
    assert ids(examples.batch([3, 8, 5], epoch=1)) == first
    assert ids(examples.batch([3, 8, 5], epoch=2)) != first
    assert ids(sentences_of(some, seed=1).batch([3, 8, 5], epoch=1)) != first


def test_without_an_epoch_nothing_changes(sentences_of: Callable[..., training.Examples]) -> None:
    plain, augmented = sentences_of({}), sentences_of({"word_dropout": 0.5, "typos": 0.5})
    everything = range(len(plain))
    assert ids(augmented.batch(everything)) == ids(plain.batch(everything)) == ids(plain.batch(everything, epoch=0))
    assert augmented.lengths == plain.lengths
    changed = [
        a != b for a, b in zip(ids(augmented.batch(everything, epoch=0)), ids(plain.batch(everything)), strict=True)
    ]
    assert np.mean(changed) > 0.95


def test_the_texts_of_a_pair_change_each_on_its_own() -> None:
    task = tasks.get("sentence-similarity")
    names = ["input_ids", "attention_mask"]
    encoder = task.encoder(demo.find().model, {"max_length": 64}, inputs=names)
    text = "one two three four five six seven eight nine ten"
    examples = training.Examples(
        task, encoder, [Example(text, 0)] * 2, names, training.augmenter(task, {"word_dropout": 0.5}, [], 0)
    )
    batch = examples.batch([0, 1], epoch=0)
    first, second = ids(batch)
    assert first != second and max(len(first), len(second)) < 12
    assert batch.labels.tolist() == [0, 0]


def test_rows_of_a_table_are_mixed_as_they_are_encoded() -> None:
    task = tasks.get("tabular")
    spec = {
        "numeric": {"age": {"median": 40.0, "mean": 40.0, "std": 10.0, "indicator": False}},
        "categorical": {"job": ["cook", "pilot"]},
    }
    rows = [Example({"age": 20 + 3 * number, "job": ("cook", "pilot")[number % 2]}, number % 2) for number in range(8)]
    encoder = task.encoder(Path(), spec)
    examples = training.Examples(
        task, encoder, rows, ["features"], training.augmenter(task, {"mixup": 1.0}, ["0", "1"], 0)
    )
    mixed = examples.batch(range(8), epoch=0)
    assert mixed.labels.shape == (8, 2)
    assert mixed.inputs["features"][:, 1:].numpy() == pytest.approx(mixed.labels.numpy(), abs=1e-6)  # the job tells
    assert not np.allclose(mixed.inputs["features"].numpy(), examples.batch(range(8)).inputs["features"].numpy())


# Trainings


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a network with a head, prepared images of three kinds)."""
    work = tmp_path_factory.mktemp("pictures")
    task = tasks.get("image-classification")
    spec = {"resize": {"height": 24, "width": 24}, "channels": 1}
    code = modules.imported(f"{network_file(work)}:build", None, work / "cache", False)
    (work / "model").mkdir()
    network.load(code, task, list(CLASSES), spec).save_pretrained(work / "model")
    (work / "model" / "preprocessor.json").write_text(json.dumps(spec))
    (work / "prepared").mkdir()
    module = stages.get("prepare")
    given_ = module.Parameters.model_validate({"data": str(image_folder(work / "images", 30))})
    module.run(work / "model", work / "prepared", given_, stages.Context(task=task.NAME))
    return work / "model", work / "prepared"


Train = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def train(prepared: Path, pictures: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Train:
    """The stage finetune for texts or images, in this process."""
    model = one_layer(tmp_path_factory.mktemp("model"))
    inputs = {"text-classification": (model, prepared), "image-classification": pictures}

    def run(task: str, **given_: Any) -> tuple[Path, dict[str, Any]]:
        output = tmp_path_factory.mktemp("tuned")
        source, data = inputs[task]
        encoding = json.loads((data / "report.json").read_text())["encoding"]
        common = {"encoding": encoding, "epochs": 2, "batch_size": 16, "learning_rate": 1e-3}
        return output, run_stage("finetune", source, output, data, task=task, **{**common, **given_})

    return run


def trained(folder: Path) -> str:
    path = folder / modules.WEIGHTS
    return weights(folder) if not path.exists() else path.read_bytes().hex()


@pytest.mark.parametrize(
    ("task", "augment"),
    [
        ("text-classification", {"word_dropout": 0.1, "word_swap": 0.1, "typos": 0.1}),
        ("image-classification", {"flip": 0.5, "crop": 0.1, "resized_crop": 0.7}),
        ("image-classification", {"mixup": 0.2, "cutmix": 1.0}),
    ],
)
def test_augmented_trainings_repeat_and_go_on_to_the_same_weights(
    train: Train, tmp_path: Path, task: str, augment: dict[str, Any]
) -> None:
    plain, _ = train(task)
    first, report = train(task, augment=augment)
    second, _ = train(task, augment=augment)
    assert trained(first) == trained(second) != trained(plain)
    steps = report["history"][0]["steps"]
    with pytest.raises(KilledError):
        train(task, augment=augment, progress=kill_at("epoch 2 of", steps + 1), resume=tmp_path)
    resumed, again = train(task, augment=augment, resume=tmp_path)
    assert trained(resumed) == trained(first)
    assert again == report


def test_only_training_examples_are_augmented(train: Train, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tasks.get("text-classification")
    seen: list[str] = []
    plain = type(task).augmented

    def noted(self: Any, example: Example, *given_: Any) -> Any:
        seen.append(example.input)
        return plain(self, example, *given_)

    monkeypatch.setattr(type(task), "augmented", noted)
    train("text-classification", augment={"typos": 0.5}, epochs=1)
    assert sorted(seen) == sorted(example.input for example in task.read_examples(prepared, "train"))


def test_soft_labels_bear_weights_and_smoothing_in_a_training(train: Train) -> None:
    _, report = train(
        "image-classification", augment={"mixup": 0.4}, balanced=True, label_smoothing=0.1, accumulate=2, epochs=3
    )
    losses = [entry["loss"] for entry in report["history"]]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


# What is asked for


def plan(model: Path, data: Path, tmp_path: Path, **given_: Any) -> Any:
    options = {"model": str(model), "data": str(data), "target": "raspberry-pi-5", "output": str(tmp_path / "o")}
    return planning.plan(planning.options(**options, **given_))


def test_settings_stand_in_the_recipe_without_those_that_do_nothing(encoder: Path, few: Path, tmp_path: Path) -> None:
    made = plan(encoder, few, tmp_path, augment=[("typos", 0.1), ("word_swap", 0)])
    assert made.recipe.finetune.parameters["augment"] == {"typos": 0.1}
    assert "augment" not in plan(encoder, few, tmp_path, augment={"typos": 0.0}).recipe.finetune.parameters


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"flip": 0.5}, "no augmentation 'flip'; it has: word_dropout, word_swap, typos"),
        ({"typos": 1.5}, "--augment typos: Input should be less than or equal to 1"),
        ({"word_dropout": 1}, "--augment word_dropout: Input should be less than 1"),
        ({"typos": "often"}, "--augment typos: Input should be a valid number"),
        ({"typos": True}, "--augment typos: Input should be a number, not yes or no"),
        ({"typos": float("nan")}, "--augment typos: Input should be"),
    ],
)
def test_settings_are_checked_beforehand(
    encoder: Path, few: Path, tmp_path: Path, augment: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        plan(encoder, few, tmp_path, augment=augment)


def test_every_task_lists_its_own() -> None:
    for name, known in {
        "tabular": "mixup",
        "image-classification": "flip, crop, resized_crop, mixup, cutmix",
        "token-classification": "word_dropout, word_swap, typos",
        "sentence-similarity": "word_dropout, word_swap, typos",
    }.items():
        with pytest.raises(InputError, match=f"The task {name} has no augmentation 'zoom'; it has: {known}"):
            tasks.get(name).augmentation({"zoom": 1})
    with pytest.raises(InputError, match="--augment mixup: Input should be a finite number"):
        tasks.get("tabular").augmentation({"mixup": float("inf")})


def test_what_is_not_trained_is_not_augmented(tuned: Path, few: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--augment typos: nothing is trained here"):
        plan(tuned, few, tmp_path, augment={"typos": 0.1})


def test_the_verb_takes_settings(encoder: Path, few: Path, tmp_path: Path) -> None:
    done = run_toolkit(
        "finetune", encoder, "--data", few, "--epochs", "1", "--augment", "word_dropout=0.1", "--augment", "typos=0.05",
        "-o", tmp_path / "tuned",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    receipt = json.loads((tmp_path / "tuned" / "receipt.json").read_text())
    assert receipt["parameters"]["augment"] == {"word_dropout": 0.1, "typos": 0.05}
    refused = run_toolkit("finetune", encoder, "--data", few, "--augment", "flip=1", "-o", tmp_path / "no")
    assert refused.returncode == 2 and refused.stderr.count("Error: ") == 1 and not (tmp_path / "no").exists()
