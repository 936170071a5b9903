"""Recipes and plans: what a conversion will do, decided without running anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.small_inputs import tiny_checkpoint
from toolkit import checkpoint as checkpoints
from toolkit import cli, planning, recipe, target
from toolkit.errors import InputError
from toolkit.tasks.text_classification import TASK


def plan(model: Path, data: Path, **options: object) -> planning.Plan:
    given = {"target": "raspberry-pi-5", "output": str(model.parent / "out"), "cache_dir": str(model.parent / "cache")}
    return planning.plan(planning.Options(model=str(model), data=str(data), **{**given, **options}))  # type: ignore[arg-type]


def test_an_untrained_checkpoint_is_finetuned(model: Path, data: Path) -> None:
    made = plan(model, data, epochs=5, labels=["worse", "better"]).recipe
    assert made.finetune.reason == "BertModel has no head that was trained for the task"
    assert made.finetune.parameters is not None
    assert made.finetune.parameters["epochs"] == 5
    assert made.prepare["evaluate_only"] is False
    assert made.prepare["known_labels"] is None
    assert made.prepare["label_names"] == ["worse", "better"]


def test_a_trained_checkpoint_is_not(trained: Path, data: Path) -> None:
    made = plan(trained, data, labels=["worse", "better"]).recipe
    assert made.finetune.parameters is None
    assert made.finetune.reason == "BertForSequenceClassification is trained already"
    assert made.prepare["evaluate_only"] is True  # every example serves the gates
    assert made.prepare["known_labels"] == ["bad", "good"]
    assert made.prepare["label_names"] is None  # the model's own names hold


def test_a_trained_checkpoint_is_finetuned_when_asked(trained: Path, data: Path) -> None:
    made = plan(trained, data, finetune=True).recipe
    assert made.finetune.reason == "asked for"
    assert made.prepare["evaluate_only"] is False
    assert made.prepare["known_labels"] is None


def test_an_untrained_checkpoint_cannot_go_without(model: Path) -> None:
    with pytest.raises(InputError, match="Leave --no-finetune away"):
        recipe.finetune_plan(checkpoints.inspect(model, TASK), False, {})


def test_candidates_are_what_the_target_runs(model: Path, data: Path) -> None:
    made = plan(model, data).recipe
    profile = target.resolve("raspberry-pi-5")
    asked = [f"{engine.name} {precision}" for engine in profile.engines for precision in engine.precisions]
    assert [c.name for c in made.candidates] + [s.what for s in made.skipped] == asked
    assert {c.method for c in made.candidates if c.precision == "fp32"} == {None}
    assert {c.method for c in made.candidates if c.precision == "int8"} == {"dynamic-int8"}
    assert all(c.reason for c in made.candidates)


def test_precisions_that_cannot_be_made_are_skipped_with_the_reason() -> None:
    profile = target.resolve("raspberry-pi-5")
    engine = profile.engines[0].model_copy(update={"precisions": ["fp32", "bf16"]})
    chosen, skipped = recipe.candidates(profile.model_copy(update={"engines": [engine]}))
    assert [c.name for c in chosen] == [f"{engine.name} fp32"]
    assert [s.what for s in skipped] == [f"{engine.name} bf16"]
    assert "cannot make bf16 artifacts" in skipped[0].reason
    only_bf16 = engine.model_copy(update={"precisions": ["bf16"]})
    with pytest.raises(InputError, match="Nothing can be made for target 'raspberry-pi-5'"):
        recipe.candidates(profile.model_copy(update={"engines": [only_bf16]}))


def test_a_plan_writes_nothing(model: Path, data: Path, tmp_path: Path) -> None:
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    plan(model, data)
    assert {path for path in tmp_path.rglob("*") if path.parent.name != "cache" and path.name != "cache"} == before


def test_dry_run_prints_the_recipe_that_can_be_read_back(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["convert", str(model), "--data", str(data), "--target", "pi5", "--max-latency", "20ms",
                  "--max-size", "500kB", "--min-score", "0.8", "--cache-dir", str(tmp_path / "cache"),
                  "-o", str(tmp_path / "out"), "--dry-run"])  # fmt: skip
    assert ended.value.code == 0
    (tmp_path / "recipe.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    read = recipe.load(tmp_path / "recipe.yaml")
    assert read == plan(
        model, data, max_latency_ms=20.0, max_size_mb=0.5, min_score="0.8",
    ).recipe  # fmt: skip
    assert read.target == "raspberry-pi-5"  # the alias is resolved
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("seeds: 3", r"seeds: Extra inputs are not permitted"),
        ("threads: many", r"threads: .*integer"),
        ("budgets: {min_score: 5}", r"budgets\.min_score: "),
        ("a: [", "not a YAML file"),
    ],
)
def test_a_damaged_recipe_names_the_file_and_the_key(
    model: Path, data: Path, tmp_path: Path, change: str, words: str
) -> None:
    path = tmp_path / "recipe.yaml"
    key = change.partition(":")[0]
    lines = plan(model, data).recipe.to_yaml()
    head = "".join(line for line in lines.splitlines(keepends=True) if not line.startswith(f"{key}:"))
    if key == "budgets":
        head = head[: head.index("  min_score")]
    path.write_text(head + change + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=rf"recipe\.yaml.*{words}"):
        recipe.load(path)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Cannot read recipe"):
        recipe.load(tmp_path / "none.yaml")


# Texts without labels


def test_unlabeled_texts_are_known_by_their_content(data: Path, tmp_path: Path) -> None:
    deep = tiny_checkpoint(tmp_path / "deep", num_hidden_layers=4)
    texts = tmp_path / "more.csv"
    texts.write_text("id,remark\n1,a film\n", encoding="utf-8")
    with pytest.raises(InputError, match="cannot tell which column"):
        plan(deep, data, compress=True, unlabeled=str(texts))
    made = plan(deep, data, compress=True, unlabeled=str(texts), unlabeled_column="remark").recipe
    path = tmp_path / "recipe.yaml"
    path.write_text(made.to_yaml(), encoding="utf-8")
    again = planning.Options(recipe=str(path), output=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert planning.plan(again).recipe == made
    texts.write_text("id,remark\n1,another film\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"more\.csv are not what the recipe was made for"):
        planning.plan(again)
    texts.unlink()
    with pytest.raises(InputError, match=r"more\.csv"):
        planning.plan(again)


def test_unlabeled_texts_that_nothing_would_read_are_refused(model: Path, data: Path, tmp_path: Path) -> None:
    texts = tmp_path / "more.txt"
    texts.write_text("a film\n", encoding="utf-8")
    with pytest.raises(InputError, match="nothing learns from it here"):
        plan(model, data, unlabeled=str(texts))


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertForSequenceClassification", "text-classification"),
        ("BertForTokenClassification", "token-classification"),
        ("ResNetForImageClassification", "image-classification"),
        ("BertModel", "text-classification"),
    ],
)
def test_a_checkpoint_says_its_task_unless_it_is_named(architecture: str, task: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model", architectures=[architecture])
    assert task == planning.task_of(str(folder), None).NAME
    assert planning.task_of(str(folder), "sentence-similarity").NAME == "sentence-similarity"
    with pytest.raises(InputError, match="Unknown task 'poetry'; known: text-classification, image-classification"):
        planning.task_of(str(folder), "poetry")
