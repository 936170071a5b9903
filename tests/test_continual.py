"""Continual update: the checkpoint behind a bundle is found or made again, it learns new data, and what it forgot is
measured on what it was measured on, and gated."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import toolkit
from tests.conftest import run_toolkit, write_csv
from tests.networks import image_folder, network_file
from tests.refusals import Done, assert_refused, in_process
from toolkit import checkpoint as checkpoints
from toolkit import continual, conversion, planning, provenance, recovery, steps, tasks
from toolkit.cache import Cache
from toolkit.compression import Chain
from toolkit.devices import local
from toolkit.errors import InputError, RefusedError
from toolkit.planning import Options
from toolkit.provenance import Made, Origin
from toolkit.runner import Finished, Runner, Silent
from toolkit.runtime import manifest as manifests
from toolkit.storage import sha256_file, sha256_path, write_json

TABLE = "tabular"
# One epoch: none can be chosen that has not yet learned, or not yet forgotten.
LEARNING: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-2, "batch_size": 4}


def table(path: Path, old: bool, count: int = 800, seed: int = 0) -> Path:
    """Rows whose label follows from b; where c is 1, as in the new ones, the other way round. A network that sees these
    alone turns what it knew of b."""
    generator = np.random.default_rng(seed)
    with path.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["b", "c", "label"])
        for b in generator.normal(size=count):
            rows.writerow([f"{b:.4f}", 0 if old else 1, "yes" if (b > 0) == old else "no"])
    return path


class Titles(Silent):
    """A reporter that keeps which stages were run, and not taken from the cache."""

    def __init__(self) -> None:
        self.run: list[str] = []

    def started(self, title: str) -> None:
        self.run.append(title)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {
        "old": table(folder / "old.csv", True),
        "new": table(folder / "new.csv", False, seed=1),
        "third": table(folder / "third.csv", False, count=200, seed=2),
    }


@pytest.fixture(scope="module")
def learned(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that `toolkit finetune` wrote."""
    folder = tmp_path_factory.mktemp("tables") / "learned"
    steps.finetune(str(folder), {"model": "mlp", "task": TABLE, "data": str(files["old"]), **LEARNING})
    return folder


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A profile with one engine and precision: one file to make."""
    host = local.as_target().model_dump(mode="json", exclude_none=True)
    host |= {"name": "one-engine", "engines": [{"name": "onnxruntime", "precisions": ["fp32"]}]}
    path = tmp_path_factory.mktemp("targets") / "one-engine.yaml"
    path.write_text(yaml.safe_dump(host), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def shipped(files: dict[str, Path], board: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose checkpoint is that very one."""
    folder = tmp_path_factory.mktemp("tables") / "shipped"
    toolkit.convert("mlp", target=board, task=TABLE, data=str(files["old"]), output=str(folder), **LEARNING)
    return folder


@pytest.fixture
def update(files: dict[str, Path], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """An update by the new rows; what it came to, refused or not."""

    def run(origin: Path, name: str = "updated", **given: Any) -> dict[str, Any]:
        kept = {
            key: given.pop(key)
            for key in ("rehearsal", "ewc", "old_data", "max_forgetting", "reporter")
            if key in given
        }
        options = {"data": str(files["new"]), **LEARNING, **given}
        try:
            return continual.update(str(tmp_path / name), options, continue_from=str(origin), **kept)
        except RefusedError as error:
            assert error.bundle is not None
            return {**error.bundle, "message": str(error)}

    return run


def receipt_of(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "receipt.json").read_text())
    return read


def digest(folder: Path) -> str:
    return sha256_file(folder / "model.safetensors")


# What is forgotten


def test_without_rehearsal_it_forgets_and_is_refused(
    learned: Path, update: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    result = update(learned, rehearsal=0.0)
    found = result["continual"]
    assert found["old"]["before"] > 0.99
    assert found["old"]["forgetting_points"] == pytest.approx(100 * (found["old"]["before"] - found["old"]["after"]))
    assert found["old"]["forgetting_points"] > 50
    assert found["new"]["before"] < 0.1 and found["new"]["after"] > 0.95
    assert not result["accepted"]
    assert [(gate["gate"], gate["passed"]) for gate in found["gates"]] == [("forgetting", False), ("classes", False)]
    assert result["refusals"][0].startswith("forgetting: AUC on 160 old evaluation examples 1.0000 → ")
    assert f"kept in {tmp_path / 'updated'}, marked as refused" in result["message"]
    kept = receipt_of(tmp_path / "updated")
    assert kept["accepted"] is False and kept["refusals"] == result["refusals"]
    assert kept["continual"] == found
    with pytest.raises(InputError, match="updated was refused by its gates"):
        continual.update(str(tmp_path / "more"), {"data": "x"}, continue_from=str(tmp_path / "updated"))
    assert update(learned, "free", rehearsal=0.0, max_forgetting="100%")["accepted"]


def test_the_command_line_shows_what_was_forgotten_and_ends_with_1(
    learned: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    options = ("--epochs", "1", "--learning-rate", "1e-2", "--batch-size", "4", "--rehearsal", "0")
    command = ("finetune", "--continue-from", learned, "--data", files["new"], *options, "-o", tmp_path / "updated")
    done = run_toolkit(*command)
    assert done.returncode == 1, done.stderr
    assert "AUC on examples held out: REFUSED by the gates" in done.stdout and "old data (n=160)" in done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and "loses too much of what the model knew" in errors[0]
    assert (tmp_path / "updated" / "model.safetensors").exists()


def test_rehearsal_and_held_weights_keep_what_it_knew(
    learned: Path, update: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    rehearsed = update(learned, rehearsal=1.0)
    found = rehearsed["continual"]
    assert rehearsed["accepted"], rehearsed["refusals"]
    assert found["old"]["forgetting_points"] <= 1 and found["new"]["after"] > 0.95
    assert found["old"]["classes"]["yes"]["recall_after"] > 0.94
    assert rehearsed["rehearsed"] == 575
    held = update(learned, "held", rehearsal=0.0, ewc=10.0)["continual"]
    assert held["old"]["forgetting_points"] < 10 and held["new"]["after"] > 0.9
    spec = "preprocessor.json"
    assert (tmp_path / "updated" / spec).read_bytes() == (learned / spec).read_bytes()  # scaled as it was


def test_an_updated_model_is_updated_again_and_knows_all_it_learned(
    learned: Path, files: dict[str, Path], update: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    first = update(learned, "first", rehearsal=1.0)
    second = update(tmp_path / "first", "second", data=str(files["third"]), rehearsal=1.0, epochs=2)
    told = [Path(each["parameters"]["data"]).name for each in receipt_of(tmp_path / "second")["trained_on"]]
    assert told == ["old.csv", "new.csv", "third.csv"]
    counts = [first["continual"][part]["examples"] for part in ("old", "new")]
    assert second["continual"]["old"]["examples"] == sum(counts)
    moved = shutil.copy(files["new"], tmp_path / "moved.csv")
    again = {"data": str(files["third"]), "rehearsal": 1.0, "epochs": 2}
    assert update(tmp_path / "first", "third", old_data=[moved], **again)["continual"] == {
        **second["continual"],
        "notes": [],
    }
    with pytest.raises(InputError, match=r"third\.csv is none of the 2 files that .*first was trained on: .*old\.csv"):
        update(tmp_path / "first", "no", old_data=[str(files["third"])], **again)


# The checkpoint behind a bundle


def test_a_bundle_is_continued_like_its_checkpoint(
    shipped: Path, learned: Path, update: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    titles = Titles()
    by_bundle = update(shipped, "a", rehearsal=1.0, reporter=titles)
    assert "finetune" not in titles.run[:-3]  # the one from then is in the cache
    by_folder = update(learned, "b", rehearsal=1.0)
    assert by_bundle["continual"]["checkpoint"] == by_folder["continual"]["checkpoint"]
    assert by_bundle["continual"]["old"] == by_folder["continual"]["old"]
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_what_the_cache_has_lost_is_made_again_with_the_same_hash(
    shipped: Path, update: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    wanted = json.loads((shipped / "manifest.json").read_text())["checkpoint"]["sha256"]
    titles = Titles()
    result = update(shipped, rehearsal=1.0, cache_dir=str(tmp_path / "cache"), seed=3, reporter=titles)
    assert titles.run.count("finetune") == 2  # the one from then, and the update
    assert result["continual"]["checkpoint"] == wanted
    assert result["continual"]["notes"] == []
    entries = [json.loads(path.read_text()) for path in (tmp_path / "cache" / "stages").glob("*/receipt.json")]
    then = next(each for each in entries if each["stage"] == "finetune" and "old 0" not in each["inputs"])
    weights = tmp_path / "cache" / "stages" / then["key"] / "output" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")  # what was changed is not what is wanted
    titles = Titles()
    spoiled = update(shipped, "b", rehearsal=1.0, cache_dir=str(tmp_path / "cache"), seed=3, reporter=titles)
    assert spoiled["continual"]["checkpoint"] == wanted and spoiled["continual"]["notes"] == []


def altered(bundle: Path, folder: Path, recipe: dict[str, Any] | None = None, **manifest: Any) -> Path:
    """A copy of a bundle with other values in its recipe and its manifest, and hashes that fit."""
    shutil.copytree(bundle, folder)
    data = json.loads((folder / "manifest.json").read_text())
    if recipe is not None:
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **recipe}))
        data["files"]["recipe.yaml"] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    data = {key: value for key, value in {**data, **manifest}.items() if value is not None}
    write_json(folder / "manifest.json", {**data, "content_hash": manifests.content_hash(data)})
    return folder


def test_a_model_that_is_gone_is_not_needed_while_the_cache_has_its_checkpoint(
    shipped: Path, update: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    orphan = altered(shipped, tmp_path / "orphan", recipe={"model": "gone"})
    assert update(orphan, rehearsal=1.0)["accepted"]
    cache = str(tmp_path / "cache")
    with pytest.raises(
        InputError, match=r"the model gone that it was made from is needed and cannot be had .*--old-data FILE"
    ):
        update(orphan, "b", cache_dir=cache)
    other = altered(shipped, tmp_path / "other", recipe={"model_sha256": "0" * 64})
    with pytest.raises(InputError, match="the model mlp is not the one that it was made from; it has changed since"):
        update(other, "b", cache_dir=cache)
    assert not (tmp_path / "b").exists()


def test_a_receipts_key_is_no_path(tmp_path: Path) -> None:
    cache, theirs = Cache(tmp_path / "cache"), tmp_path / "theirs"
    (theirs / "output").mkdir(parents=True)
    write_json(theirs / "receipt.json", {"output_sha256": "0" * 64})
    assert recovery.cached(cache, "../../theirs", "0" * 64) is None
    assert (theirs / "receipt.json").exists()


def prepared(bundle: Path, file: Path | None, folder: Path) -> tuple[Origin, Finished]:
    """The old data of a bundle, prepared with an empty cache in `folder`."""
    cache = Cache(folder)
    origin = provenance.find(bundle, Options(), cache)
    place = None if file is None else str(file)
    return origin, recovery.prepared(origin, origin.data[0], place, Options(), cache, Runner(cache, TABLE, 0))


def test_old_data_that_moved_are_named_and_others_are_noted(
    shipped: Path, files: dict[str, Path], update: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    recipe = yaml.safe_load((shipped / "recipe.yaml").read_text())["prepare"]
    moved = altered(shipped, tmp_path / "moved", recipe={"prepare": {**recipe, "data": "gone.csv"}})
    assert update(moved, rehearsal=1.0)["accepted"]  # the cache has them as they were split
    with pytest.raises(InputError, match=r"was trained on gone\.csv, which cannot be read .* with --old-data"):
        prepared(moved, None, tmp_path / "cache")
    origin, found = prepared(moved, files["old"], tmp_path / "cache")
    assert found.sha256 == origin.data[0].prepared_sha256 and origin.notes == []
    changed = altered(shipped, tmp_path / "changed", recipe={"prepare": {**recipe, "data": str(files["third"])}})
    with pytest.raises(InputError, match=r"was trained on .*third\.csv, which has changed since"):
        prepared(changed, None, tmp_path / "other cache")
    wrong = table(tmp_path / "wrong.csv", True, seed=9)
    origin, found = prepared(shipped, wrong, tmp_path / "cache")
    assert found.report["splits"]["train"] == 575
    assert len(origin.notes) == 1
    assert origin.notes[0].startswith(f"{wrong} is not what {shipped} was trained on: its split is a new one")
    with pytest.raises(InputError, match="To make it again, --old-data must be the file of then"):
        update(shipped, "b", old_data=[str(wrong)], cache_dir=str(tmp_path / "cache"))


def test_a_model_that_nothing_was_trained_for_brings_what_it_knows(
    learned: Path, files: dict[str, Path], board: str, update: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """A bundle of a trained model: its checkpoint is that model, and so are the data."""
    bundle = tmp_path / "bundle"
    toolkit.convert(learned, target=board, data=str(files["third"]), output=str(bundle))
    result = update(bundle, rehearsal=1.0)["continual"]
    assert result["old"]["examples"] == 160  # those of the training, not those that the bundle was measured by
    silent = tmp_path / "silent"
    shutil.copytree(learned, silent)
    (silent / "receipt.json").unlink()
    orphan = altered(bundle, tmp_path / "orphan", recipe={"model": str(silent)})
    with pytest.raises(InputError, match="no old training example to rehearse"):
        update(orphan, "b")
    alone = update(orphan, "c", rehearsal=0.0, epochs=1)["continual"]
    assert alone["old"]["examples"] == 200  # what measured the bundle
    origin, found = prepared(orphan, files["old"], tmp_path / "cache")
    assert found.report["splits"]["train"] > 500 and "is not what" in origin.notes[0]


def test_a_compressed_checkpoint_is_made_again_by_its_receipts(
    encoder: Path, sentences: list[tuple[str, str]], tmp_path: Path
) -> None:
    task = tasks.get("text-classification")
    few = write_csv(tmp_path / "few.csv", sentences[:80])
    unlabeled = tmp_path / "more.txt"
    unlabeled.write_text("a film\nno film at all\n")

    def options(cache: Path) -> Options:
        return Options(model=str(encoder), data=str(few), output=str(tmp_path / "o"), cache_dir=str(cache), epochs=1)

    made = planning.plan(options(tmp_path / "first"))
    runner = Runner(made.cache, task.NAME, 0)
    with runner.warmed():
        data = conversion.prepare(runner, made)
        tuned = conversion.finetune(runner, made, data)
        teacher = checkpoints.inspect(tuned.output, task)
        chain = Chain(runner, data, made.recipe.finetune.parameters["bf16"])  # type: ignore[index]
        teaching = chain.teach(
            teacher, unlabeled={"unlabeled": str(unlabeled)}, unlabeled_sha256=sha256_path(unlabeled)
        )
        student = chain.distill(teacher, [teaching], {"epochs": 1, "layers": [0]}, title="distill", reason="asked for")
    small = checkpoints.inspect(student.output, task)
    for finished, checkpoint in ((tuned, teacher), (student, small)):
        runner.note(finished, checkpoint=checkpoint.sha256)
    recipe = made.recipe.model_copy(
        update={"compress": made.recipe.compress.model_copy(update={"unlabeled": str(unlabeled)})}
    )
    receipts = json.loads(json.dumps(runner.receipts))  # as a bundle holds them
    origin = Origin(tmp_path, task, small.labels or [], encoder, None, [], made=Made(recipe, receipts, small.sha256))
    titles = Titles()
    again = Runner(Cache(tmp_path / "second"), task.NAME, 0, titles)
    given = options(tmp_path / "second")
    with again.warmed():
        data = conversion.prepare(again, planning.plan(given))
        found = recovery.checkpoint_of(origin, [data], given, again.cache, again)
    assert found.sha256 == small.sha256 and found.layers == 1 and origin.notes == []
    assert titles.run == ["prepare data", "finetune", f"answers of the teacher {teacher.sha256[:8]}", "distill"]
    unlabeled.unlink()
    with pytest.raises(
        InputError, match=r"the texts .*more\.txt, which its checkpoint learned from, are gone or changed"
    ):
        recovery.checkpoint_of(origin, [data], given, Cache(tmp_path / "third"), again)


# Other tasks


def test_texts_by_the_command_line_and_what_leaks_is_left_out(
    bundle: Path, sentences: list[tuple[str, str]], tmp_path: Path
) -> None:
    new = write_csv(tmp_path / "new.csv", sentences[1500:1800])  # a hundred of them are the bundle's too
    options = ("--epochs", "1", "--max-forgetting", "100%", "--seed", "5")  # the old data keep the seed of then
    command = ("finetune", "--continue-from", bundle, "--data", new, *options)
    done = run_toolkit(*command, "-o", tmp_path / "updated", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert receipt_of(tmp_path / "updated")["continual"] == result["continual"]
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert result["continual"]["old"]["examples"] == manifest["metrics"]["data"]["splits"]["eval"]
    assert result["continual"]["old"]["before"] == pytest.approx(manifest["metrics"]["score"]["before"])
    assert all(count > 0 for count in result["left_out"].values())
    assert result["continual"]["new"]["examples"] == 60 - result["left_out"]["eval"]
    encoding = receipt_of(tmp_path / "updated")["parameters"]["encoding"]
    assert encoding == {"max_length": manifest["preprocessing"]["max_length"]}
    told = run_toolkit(*command, "-o", tmp_path / "again")
    assert told.returncode == 0, told.stderr
    assert "old data (n=" in told.stdout and "old ones in every epoch" in told.stdout
    assert f"{result['left_out']['train']} of the training part" in told.stdout


def test_a_network_of_images_keeps_its_preprocessing_and_its_code_its_leave(tmp_path: Path) -> None:
    network = f"{network_file(tmp_path)}:build"
    old, new = image_folder(tmp_path / "old", 30), image_folder(tmp_path / "new", 20, seed=1)
    given = {"epochs": 1, "size": 24, "channels": 1, "task": "image-classification"}
    steps.finetune(str(tmp_path / "tuned"), {"model": network, "data": str(old), **given})
    options = {"data": str(new), "epochs": 1}
    with pytest.raises(InputError, match=r"tuned holds Python code .*--allow-code"):
        continual.update(str(tmp_path / "a"), options, continue_from=str(tmp_path / "tuned"))
    with pytest.raises(InputError, match=r"would be read in another way than what .*tuned was trained on"):
        continual.update(
            str(tmp_path / "a"), {**options, "size": 32, "allow_code": True},
            continue_from=str(tmp_path / "tuned"),
        )  # fmt: skip
    result = continual.update(
        str(tmp_path / "a"), {**options, "allow_code": True}, continue_from=str(tmp_path / "tuned"),
        max_forgetting="100%",
    )  # fmt: skip
    assert result["continual"]["old"]["examples"] == 18 and result["continual"]["new"]["examples"] == 12
    spec = "preprocessor.json"
    assert (tmp_path / "a" / spec).read_bytes() == (tmp_path / "tuned" / spec).read_bytes()


# What is refused


@pytest.fixture
def refuse(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def run(*arguments: Any, data: Path | None = None) -> Done:
        given = ["finetune", "--data", data or files["new"], "-o", tmp_path / "out", *arguments]
        done = in_process(list(map(str, given)), capsys)
        assert not (tmp_path / "out").exists()
        return done

    return run


def test_what_cannot_go_together_is_refused(refuse: Callable[..., Done], learned: Path, files: dict[str, Path]) -> None:
    from_it = ("--continue-from", learned)
    assert_refused(refuse(), "Name a model", "--continue-from")
    assert_refused(refuse("mlp", *from_it), "Both MODEL (mlp) and --continue-from")
    assert_refused(refuse("mlp", "--old-data", files["old"]), "--old-data goes with --continue-from")
    assert_refused(refuse("mlp", "--ewc", "1"), "--ewc goes with --continue-from")
    assert_refused(refuse(*from_it, "--weights", "w.pt"), "--weights w.pt: --continue-from brings weights")
    assert_refused(refuse(*from_it, "--task", "text-classification"), "learned was trained for tabular")
    assert_refused(refuse(*from_it, "--labels", "a,b"), "has labels of its own (no, yes)")
    assert_refused(refuse(*from_it, "--training", "continual=1"), "no parameter 'continual'")


def test_what_is_no_origin_is_refused(
    refuse: Callable[..., Done], shipped: Path, learned: Path, encoder: Path, tmp_path: Path
) -> None:
    def from_it(path: Path) -> Done:
        return refuse("--continue-from", path)

    assert_refused(from_it(tmp_path / "nowhere"), "nowhere is neither a bundle", "nor a checkpoint folder")
    assert_refused(from_it(encoder), "is not trained for text-classification")
    refusal = {"accepted": False, "refusals": ["score: too low"]}
    assert_refused(from_it(altered(shipped, tmp_path / "a", **refusal)), "refused by its gates (score: too low)")
    assert_refused(from_it(altered(shipped, tmp_path / "b", checkpoint=None)), "was written by an older version")
    assert_refused(from_it(altered(shipped, tmp_path / "c", schema_version=9)), "has schema version 9")
    damaged = altered(shipped, tmp_path / "d")
    (damaged / "recipe.yaml").write_text("")
    assert_refused(from_it(damaged), "recipe.yaml has 0 bytes")
    (damaged / "manifest.json").write_text("{")
    assert_refused(from_it(damaged), "manifest.json cannot be read as JSON")
    silent = tmp_path / "silent"
    shutil.copytree(learned, silent)
    write_json(silent / "receipt.json", {"stage": "finetune", "trained_on": [{"seed": "x"}]})
    assert_refused(from_it(silent), "receipt.json is damaged: its 'trained_on'")
    (silent / "receipt.json").unlink()
    assert_refused(refuse("--continue-from", silent, "--task", TABLE), "says what it was trained on", "--old-data")


def test_new_data_that_do_not_fit_are_refused(refuse: Callable[..., Done], shipped: Path, tmp_path: Path) -> None:
    def of(text: str) -> Done:
        path = tmp_path / "new.csv"
        path.write_text(text)
        return refuse("--continue-from", shipped, data=path)

    assert_refused(of(""), "new.csv is empty")
    assert_refused(of("b,c,label\n"), "new.csv has no rows")
    assert_refused(of("a,c,label\n1,2,yes\n"), "has no column 'b', which the model was trained with")
    assert_refused(of("b,c,label\n1,2,maybe\n"), "label 'maybe' is none of the model's labels (no, yes)")
    assert_refused(of("b,c,label\n1,2,yes\n"), "too few examples of 'yes' (1)")


def test_a_checkpoint_from_elsewhere_takes_old_data_from_the_user(
    learned: Path, files: dict[str, Path], update: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    silent = tmp_path / "silent"
    shutil.copytree(learned, silent)
    (silent / "receipt.json").unlink()
    result = update(silent, old_data=[str(files["old"])], rehearsal=1.0, task=TABLE)
    assert result["accepted"] and result["continual"]["old"]["examples"] == 160
    assert len(receipt_of(tmp_path / "updated")["trained_on"]) == 2
