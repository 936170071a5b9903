"""Adapters as peft writes them: merged into their base with proof, and refused where they do not belong to it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.refusals import assert_nothing_half_written, assert_refused, in_process
from tests.small_inputs import csv_text, random_encoder
from toolkit import checkpoint, demo, hub, planning, steps, tasks
from toolkit.adapters import merge, peft_folder
from toolkit.cache import open_cache
from toolkit.errors import InputError, ToolkitError

TASK = tasks.get("text-classification")
LABELS = ["bad", "fair", "good"]


def answers(model: Any) -> Any:
    import torch

    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, 200, (4, 13), generator=generator)
    with torch.no_grad():
        result = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))
    return (result.logits if hasattr(result, "logits") else result.last_hidden_state).numpy()


def written(model: Any, folder: Path) -> Path:
    """A checkpoint folder of a small model, with a tokenizer that it has no use for."""
    model.save_pretrained(folder)
    shutil.copy(demo.find().model / "tokenizer.json", folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints of small models: `bert` and `distilbert` with a head, `encoder` without."""
    folder = tmp_path_factory.mktemp("bases")

    def base(kind: str) -> Path:
        if not (folder / kind).exists():
            model = random_encoder("bert" if kind == "encoder" else kind)
            model.config.id2label = dict(enumerate(LABELS))
            written(model.bert if kind == "encoder" else model, folder / kind)
        return folder / kind

    return base


def trained(model: Any, config: Any, folder: Path) -> Any:
    """What peft makes of a model, with an adapter that does something, saved to `folder`."""
    import peft
    import torch

    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(str(folder))
    return adapted


def load(folder: Path, count: int | None = None) -> Any:
    from transformers import AutoModelForSequenceClassification

    given = {} if count is None else {"num_labels": count}
    return AutoModelForSequenceClassification.from_pretrained(folder, **given)


def configs() -> dict[str, Any]:
    import peft

    some = {"r": 4, "target_modules": ["query", "value", "output.dense"]}
    return {
        "lora": peft.LoraConfig(lora_alpha=16, task_type="SEQ_CLS", **some),
        "lora in every way": peft.LoraConfig(
            lora_alpha=3, use_rslora=True, use_dora=True, bias="all", rank_pattern={"layer.1.*.query": 2},
            alpha_pattern={"value": 5}, layers_to_transform=[0, 1, 3], layers_pattern="layer", lora_dropout=0.3,
            init_lora_weights="gaussian", modules_to_save=["classifier"], **some,
        ),
        "adalora": peft.AdaLoraConfig(
            init_r=4, target_r=2, total_step=6, tfinal=2, lora_alpha=8, target_modules=["query", "dense"],
            task_type="SEQ_CLS",
        ),
        "ia3": peft.IA3Config(
            target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"], task_type="SEQ_CLS"
        ),
        "loha": peft.LoHaConfig(alpha=2, **some),
        "lokr": peft.LoKrConfig(alpha=2, decompose_both=True, **some),
    }  # fmt: skip


@pytest.fixture
def lora(bases: Callable[[str], Path], tmp_path: Path) -> Path:
    """A LoRA of `bert`, which the test may spoil."""
    trained(load(bases("bert")), configs()["lora"], tmp_path / "lora")
    return tmp_path / "lora"


def merged(base: Path, adapter: Path, tmp_path: Path, task: str = TASK.NAME, **given: Any) -> Path:
    cache = open_cache(tmp_path / "cache")
    return peft_folder.merged(base, adapter, tasks.get(task), cache, model=str(base), **given)


# --- merged


@pytest.mark.parametrize("name", ["lora", "lora in every way", "ia3", "loha", "lokr"])
def test_the_merged_model_is_the_base_with_its_adapter(bases: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    from transformers import AutoModelForSequenceClassification

    base = bases("bert")
    wanted = answers(trained(load(base), configs()[name], tmp_path / "adapter"))
    folder = merged(base, tmp_path / "adapter", tmp_path)
    model, loading = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    assert np.abs(answers(model) - wanted).max() < 1e-5
    assert np.abs(answers(load(base)) - wanted).max() > 1e-4
    record = json.loads((folder / peft_folder.RECORD).read_text())
    assert record["merge"]["answer_difference"] < 1e-5 < record["merge"]["weight_change"]
    assert record["merge"]["changed"] == record["merge"]["adapted"] > 0
    assert checkpoint.inspect(folder, TASK).labels == LABELS


def test_ranks_that_were_shared_out_are_merged_as_they_are(bases: Callable[[str], Path], tmp_path: Path) -> None:
    import peft
    import torch

    base, config = bases("bert"), configs()["adalora"]
    adapted = peft.get_peft_model(load(base), config)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    ids = torch.arange(64).reshape(8, 8)
    for step in range(6):
        adapted(input_ids=ids, labels=torch.arange(8) % 3).loss.backward()
        optimizer.step()
        adapted.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    adapted.save_pretrained(str(tmp_path / "adapter"))
    pattern = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["rank_pattern"]
    assert sum(map(sum, pattern.values())) == 2 * len(pattern)
    folder = merged(base, tmp_path / "adapter", tmp_path)
    assert np.abs(answers(load(folder)) - answers(adapted)).max() < 1e-5
    assert np.abs(answers(load(folder)) - answers(load(base))).max() > 1e-3


def test_an_image_classifier_takes_one_too(tmp_path: Path) -> None:
    import peft
    import torch
    from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    base = tmp_path / "base"
    ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=3, **sizes)).save_pretrained(base)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(base)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    adapted = trained(AutoModelForImageClassification.from_pretrained(base), config, tmp_path / "adapter").eval()
    folder = merged(base, tmp_path / "adapter", tmp_path, "image-classification")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = adapted(pixel_values=pixels).logits
        found = AutoModelForImageClassification.from_pretrained(folder).eval()(pixel_values=pixels).logits
    assert torch.allclose(found, wanted, atol=1e-5)
    assert (folder / "preprocessor.json").is_file()


def test_the_same_content_is_merged_once_and_other_content_again(
    bases: Callable[[str], Path], lora: Path, tmp_path: Path
) -> None:
    first = merged(bases("bert"), lora, tmp_path)
    before = (first / "model.safetensors").stat().st_mtime_ns
    shutil.copytree(lora, tmp_path / "elsewhere")
    assert merged(bases("bert"), tmp_path / "elsewhere", tmp_path) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == before
    config = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 2}))
    other = merged(bases("bert"), lora, tmp_path)  # what the config says is what counts: nobody can know better
    assert other != first
    change = np.abs(answers(load(first)) - answers(load(other))).max()
    assert change > 1e-3


# --- heads and labels


@pytest.fixture
def with_head(bases: Callable[[str], Path], tmp_path: Path) -> tuple[Path, Any]:
    """An adapter with a head of two labels, of the encoder that has none, and the model that it is."""
    adapted = trained(load(bases("encoder"), 2), configs()["lora"], tmp_path / "with-head")
    return tmp_path / "with-head", adapted


def test_the_head_of_an_adapter_is_taken(
    bases: Callable[[str], Path], with_head: tuple[Path, Any], tmp_path: Path
) -> None:
    adapter, adapted = with_head
    change(adapter, base_model_name_or_path=None)
    for base in ("encoder", "bert"):  # without a head, and with one for three labels
        folder = merged(bases(base), adapter, tmp_path)
        assert np.abs(answers(load(folder)) - answers(adapted)).max() < 1e-5
        assert checkpoint.inspect(folder, TASK).labels == ["LABEL_0", "LABEL_1"]


def test_where_the_names_of_labels_come_from(
    bases: Callable[[str], Path], with_head: tuple[Path, Any], lora: Path, tmp_path: Path
) -> None:
    adapter, base = with_head[0], bases("encoder")

    def names(folder: Path) -> list[str] | None:
        return checkpoint.inspect(folder, TASK).labels

    assert names(merged(bases("bert"), lora, tmp_path)) == LABELS  # as many as the base has
    assert names(merged(base, adapter, tmp_path, labels=["no", "yes"])) == ["no", "yes"]
    (adapter / "config.json").write_text(json.dumps({"id2label": {"0": "ham", "1": "spam"}}))
    assert names(merged(base, adapter, tmp_path)) == ["ham", "spam"]
    with pytest.raises(InputError, match=r"--labels names 3 labels, but the head of .* knows 2"):
        merged(base, adapter, tmp_path, labels=LABELS)


def test_half_a_head_is_none(bases: Callable[[str], Path], tmp_path: Path) -> None:
    """Older versions of peft save `classifier` alone; DistilBERT's head begins with another layer, made at random."""
    import peft
    from safetensors.torch import load_file, save_file

    encoder = written(load(bases("distilbert")).distilbert, tmp_path / "encoder")
    config = peft.LoraConfig(r=2, target_modules=["q_lin"], task_type="SEQ_CLS")
    trained(load(encoder, 2), config, tmp_path / "adapter")
    weights = tmp_path / "adapter" / peft_folder.WEIGHTS
    whole = load_file(weights)
    save_file({name: value for name, value in whole.items() if "pre_classifier" not in name}, weights)
    with pytest.raises(InputError, match=r"needs pre_classifier.bias, which is neither among its weights nor"):
        merged(encoder, tmp_path / "adapter", tmp_path)
    save_file(whole, weights)
    assert merged(encoder, tmp_path / "adapter", tmp_path).is_dir()


def test_an_encoder_with_an_adapter_and_no_head_stays_an_encoder(bases: Callable[[str], Path], tmp_path: Path) -> None:
    import peft
    from transformers import AutoModel

    config = peft.LoraConfig(r=2, target_modules=["query"], task_type="FEATURE_EXTRACTION")
    adapted = trained(AutoModel.from_pretrained(bases("encoder")), config, tmp_path / "adapter")
    for task, labels in (("text-classification", None), ("sentence-similarity", [])):
        folder = merged(bases("encoder"), tmp_path / "adapter", tmp_path, task)
        assert np.abs(answers(AutoModel.from_pretrained(folder)) - answers(adapted)).max() < 1e-5
        assert checkpoint.inspect(folder, tasks.get(task)).labels == labels


# --- faults of merges


def test_a_merge_into_a_tied_table_is_caught(tmp_path: Path) -> None:
    """The adapter of the embeddings would change the layer that shares them."""
    import peft
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    ))  # fmt: skip
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    adapted = trained(model, peft.LoraConfig(r=2, target_modules=["word_embeddings"]), tmp_path / "adapter")
    with pytest.raises(ToolkitError, match="does not answer like the one with its adapter"):
        merge.save(adapted, tmp_path / "merged", answers)
    assert not (tmp_path / "merged").exists()


def test_nothing_is_merged_twice(bases: Callable[[str], Path], lora: Path, tmp_path: Path) -> None:
    once = merged(bases("bert"), lora, tmp_path)
    with pytest.raises(InputError, match=r"lora is merged into .* already"):
        merged(once, lora, tmp_path)
    trained(load(once), configs()["ia3"], tmp_path / "ia3")  # another one may follow
    twice = merged(once, tmp_path / "ia3", tmp_path)
    assert len(json.loads((twice / "config.json").read_text())["merged_adapters"]) == 2
    with pytest.raises(InputError, match="already"):
        merged(twice, lora, tmp_path)


def test_an_adapter_that_does_nothing_is_refused(bases: Callable[[str], Path], tmp_path: Path) -> None:
    import peft

    peft.get_peft_model(load(bases("bert")), configs()["lora"]).save_pretrained(str(tmp_path / "idle"))
    with pytest.raises(ToolkitError, match="changed none of the 16 matrices"):
        merged(bases("bert"), tmp_path / "idle", tmp_path)
    assert not list((tmp_path / "cache" / "imported").glob("*"))


# --- adapters of other models


def change(folder: Path, **settings: Any) -> None:
    """Write settings into the adapter's config."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_an_adapter_of_another_model_is_refused(bases: Callable[[str], Path], lora: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    def other(name: str, **sizes: int) -> Path:
        config = AutoConfig.from_pretrained(bases("bert"), **sizes)
        return written(AutoModelForSequenceClassification.from_config(config), tmp_path / name)

    change(lora, base_model_name_or_path=None)
    begins = "lora was made for another model than this"
    for base, words in (
        (other("narrow", hidden_size=32), r"bert: size mismatch for .*lora_A"),
        (other("shallow", num_hidden_layers=2), "bert: it has, and the model has not, 16 weights, for example .*layer"),
        (other("deep", num_hidden_layers=5), "bert: it lacks 8 weights, for example .*layer.4"),
        (
            bases("distilbert"),
            "distilbert: it belongs to layers called output.dense, query, value, of which there is none",
        ),
    ):
        with pytest.raises(InputError, match=f"{begins} {words}"):
            merged(base, lora, tmp_path)
    change(lora, r=8)  # another scale
    with pytest.raises(InputError, match=f"{begins} bert: size mismatch"):
        merged(bases("bert"), lora, tmp_path)
    assert not list((tmp_path / "cache" / "imported").glob("*"))


def test_a_base_of_the_same_shape_is_known_by_where_the_adapter_was_made(
    bases: Callable[[str], Path], lora: Path, tmp_path: Path
) -> None:
    import torch

    twin = load(bases("bert"))
    with torch.no_grad():
        twin.bert.encoder.layer[0].output.dense.weight.mul_(1.01)
    written(twin, tmp_path / "twin")
    assert json.loads((lora / "adapter_config.json").read_text())["base_model_name_or_path"] == str(bases("bert"))
    with pytest.raises(InputError, match=r"lora was made for .*bert, whose weights are not those of .*twin"):
        merged(tmp_path / "twin", lora, tmp_path)
    shutil.copytree(bases("bert"), tmp_path / "copy")
    assert merged(tmp_path / "copy", lora, tmp_path).is_dir()
    change(lora, base_model_name_or_path="nowhere/to-be-found")  # nothing is known of it, and that is said in the docs
    assert merged(tmp_path / "twin", lora, tmp_path).is_dir()


def test_names_and_revisions_of_a_hub_are_compared(bases: Callable[[str], Path], lora: Path, tmp_path: Path) -> None:
    here, there = "a" * 40, "b" * 40
    base = tmp_path / "models--organisation--small-bert" / "snapshots" / here
    shutil.copytree(bases("bert"), base)
    for named, revision, words in (
        ("organisation/large-bert", None, "was made for organisation/large-bert, not for organisation/small-bert"),
        ("organisation/small-bert", there, f"the revision {there} of organisation/small-bert; .* is {here}"),
    ):
        change(lora, base_model_name_or_path=named, revision=revision)
        with pytest.raises(InputError, match=words):
            merged(base, lora, tmp_path)
    for named, revision in (("organisation/small-bert", here), ("Small-BERT", "main"), ("mirror/small-bert", None)):
        change(lora, base_model_name_or_path=named, revision=revision)
        assert merged(base, lora, tmp_path).is_dir()
    assert hub.is_id("organisation/small-bert")
    assert peft_folder._origin(bases("bert"), "organisation/small-bert") == ("organisation/small-bert", None)


# --- what is refused, in one line, by the verbs


def spoil(folder: Path, how: str) -> None:
    """Damage an adapter folder."""
    import torch
    from safetensors.torch import load_file, save_file

    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    settings: dict[str, dict[str, Any]] = {
        "prompt": {"peft_type": "PROMPT_TUNING"},
        "unknown": {"peft_type": "NEXT_YEARS"},
        "code": {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
        "layers": {"layer_replication": [[0, 2], [1, 3]]},
        "pissa": {"init_lora_weights": "pissa_niter_4"},
        "task": {"task_type": "CAUSAL_LM"},
        "tokens": {"task_type": "TOKEN_CLS"},
        "rank": {"r": "many"},
    }
    if how in settings:
        change(folder, **settings[how])
    elif how == "missing":
        shutil.rmtree(folder)
    elif how == "file":
        shutil.rmtree(folder)
        folder.write_text("an adapter")
    elif how == "model":
        config.rename(folder / "config.json")
    elif how == "empty":
        config.write_text("")
    elif how == "nothing":
        config.write_text("{}")
    elif how == "corrupt":
        config.write_bytes(config.read_bytes()[:100])
    elif how == "pickle":
        torch.save(load_file(weights), folder / "adapter_model.bin")
        weights.unlink()
    elif how == "weightless":
        weights.unlink()
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        tensors = load_file(weights)
        name = sorted(tensors)[0]
        if how == "nan":
            tensors[name][0] = float("nan")
        else:
            del tensors[next(name for name in tensors if "classifier" in name)]
        save_file(tensors, weights)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", ("is no folder", "adapter_config.json and adapter_model.safetensors")),
        ("file", ("is no folder",)),
        ("model", ("has no adapter_config.json", "It is a model: give it as MODEL")),
        ("empty", ("adapter_config.json cannot be read as JSON",)),
        ("nothing", ("of no type (peft_type)", "known: LORA, ADALORA, IA3")),
        ("corrupt", ("adapter_config.json cannot be read as JSON",)),
        ("unknown", ("of the type 'NEXT_YEARS'", "cannot be merged")),
        ("prompt", ("of the type 'PROMPT_TUNING'", "cannot be merged")),
        ("pickle", ("as a pickle (adapter_model.bin)", "save_pretrained, which writes safetensors")),
        ("weightless", ("there is no adapter_model.safetensors",)),
        ("cut", ("adapter_model.safetensors is damaged",)),
        ("nan", ("is damaged", "values that are no numbers")),
        ("headless", ("it lacks the weight", "classifier")),
        ("code", ("asks for megatron_config",)),
        ("layers", ("asks for layer_replication",)),
        ("pissa", ("began with 'pissa_niter_4'", "path_initial_model_for_weight_conversion")),
        ("task", ("was trained for CAUSAL_LM",)),
        ("tokens", ("was trained for TOKEN_CLS", "add --task token-classification")),
        ("rank", ("adapter_config.json is damaged",)),
    ],
)
def test_a_folder_that_is_no_adapter_to_be_merged(
    bases: Callable[[str], Path], lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str,
    words: tuple[str, ...],
) -> None:  # fmt: skip
    spoil(lora, how)
    output, cache = tmp_path / "out", tmp_path / "cache"
    done = in_process(
        ["export", str(bases("bert")), "--engine", "onnxruntime", "--adapter", str(lora), "-o", str(output),
         "--cache-dir", str(cache)], capsys,
    )  # fmt: skip
    assert_refused(done, str(lora), *words)
    assert_nothing_half_written(output, cache)
    assert not (cache / "imported").exists() or not list((cache / "imported").iterdir())
    assert "antigravity" not in sys.modules  # which `code` names


def test_other_things_that_take_no_adapter(
    bases: Callable[[str], Path], lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "artifact.json").write_text("{}")
    (artifact / "config.json").write_text((bases("bert") / "config.json").read_text())
    given = ["--adapter", str(lora), "-o", str(tmp_path / "out")]
    assert_refused(in_process(["quantize", str(artifact), *given], capsys), "is an exported artifact")
    data = tmp_path / "table.csv"
    data.write_text(csv_text([("1", "a"), ("2", "b")] * 10, "number,label"))
    done = in_process(["finetune", "mlp", "--task", "tabular", "--data", str(data), *given], capsys)
    assert_refused(done, "adapters are those of transformers models; mlp is none")
    done = in_process(["convert", str(lora), "--data", str(data), "-o", str(tmp_path / "out")], capsys)
    assert_refused(done, "is an adapter, not a model: give its base as MODEL, with --adapter")
    prompted = tmp_path / "prompted"
    shutil.copytree(bases("bert"), prompted)
    described = checkpoint.inspect(prompted, TASK).with_prompt("prompt", 4)
    adapter = peft_folder.read(lora)
    with pytest.raises(InputError, match="has a prompt, which the adapter was not trained with"):
        peft_folder._check_base(adapter, described, TASK, "prompted")


# --- the verbs


def test_an_artifact_is_that_of_the_merged_model(
    bases: Callable[[str], Path], with_head: tuple[Path, Any], tmp_path: Path
) -> None:
    import torch

    from toolkit import engines

    adapter, adapted = with_head
    report = steps.export(
        str(bases("encoder")), str(tmp_path / "artifact"), engine="onnxruntime", lengths=[16], adapter=str(adapter),
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert report["precision"] == "fp32"
    ids = np.random.default_rng(5).integers(0, 200, (2, 16))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    found = next(iter(engines.get("onnxruntime").load(tmp_path / "artifact" / "model.onnx").run(inputs).values()))
    with torch.no_grad():
        wanted = adapted.eval()(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits.numpy()
    assert np.abs(found - wanted).max() < 1e-4


def test_a_plan_has_the_merged_model_and_says_so(
    bases: Callable[[str], Path], with_head: tuple[Path, Any], tmp_path: Path
) -> None:
    data = tmp_path / "data.csv"
    data.write_text(csv_text([(f"text {number}", ("no", "yes")[number % 2]) for number in range(40)]))
    given = {
        "model": str(bases("encoder")), "adapter": str(with_head[0]), "data": str(data), "target": "raspberry-pi-5",
        "cache_dir": str(tmp_path / "cache"), "output": str(tmp_path / "out"),
    }  # fmt: skip
    made = planning.plan(planning.options(**given, labels=["no", "yes"]))
    assert made.checkpoint.labels == ["no", "yes"]
    assert made.recipe.finetune.parameters is None  # it is trained, though the base is not
    assert made.recipe.adapter == given["adapter"]
    recorded = peft_folder.record(made.checkpoint.folder)["adapter"]
    assert (recorded["name"], recorded["method"]) == ("with-head", "lora")
    (tmp_path / "recipe.yaml").write_text(made.recipe.to_yaml())
    again = planning.plan(planning.Options(
        recipe=str(tmp_path / "recipe.yaml"), cache_dir=given["cache_dir"], output=given["output"]
    ))  # fmt: skip
    assert again.checkpoint == made.checkpoint

    further = planning.plan(planning.options(**given, finetune=True, labels=["a", "b", "c"]))
    assert further.checkpoint.labels == ["LABEL_0", "LABEL_1"]  # the new head's names are not those of the old one


def test_the_head_of_an_adapter_makes_a_model_that_can_be_pruned(
    bases: Callable[[str], Path], with_head: tuple[Path, Any], tmp_path: Path
) -> None:
    data = tmp_path / "data.csv"
    data.write_text(csv_text([(f"text {number}", str(number % 2)) for number in range(40)]))
    report = steps.prune(
        str(tmp_path / "pruned"),
        {"model": str(bases("encoder")), "adapter": str(with_head[0]), "data": str(data), "max_length": 16,
         "cache_dir": str(tmp_path / "cache")},
        parameters={"layers": 2, "epochs": 0},
    )  # fmt: skip
    assert report["shape"]["layers"] == 2
    assert checkpoint.inspect(tmp_path / "pruned", TASK).labels == ["LABEL_0", "LABEL_1"]
