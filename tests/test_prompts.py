"""Prompts: what they compute, that checkpoints and artifacts have them inside, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.refusals import assert_nothing_half_written, assert_refused, in_process
from tests.small_inputs import ENCODERS, prepare, random_encoder
from tests.stage_runs import KilledError, kill_at, run_stage, weights
from toolkit import architecture, checkpoint, engines, planning, recipe, stages, steps, tasks, training
from toolkit.adapters import PROMPTS, PromptMethod
from toolkit.engines import torch as torch_engine
from toolkit.errors import InputError, ToolkitError
from toolkit.stages import qat
from toolkit.tasks.task import Example

pytestmark = pytest.mark.usefixtures("torch_as_before")

TASK = tasks.get("text-classification")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TOKENS = 8
GIVEN = {
    "encoding": {"max_length": 64}, "epochs": 2, "learning_rate": 1e-2, "batch_size": 16, "prompt_tokens": TOKENS,
}  # fmt: skip
TEXTS = ("a quiet, brilliant film", "dull", "one of the most tedious films that anybody had to sit through this year")

# --- what a prompt computes

PROMPT_IDS = (11, 57, 103)
# model type, method: every family takes a prompt, and a prefix where attention takes keys and values from outside.
PAIRS = [(kind, method) for kind in ENCODERS for method in PROMPTS if (kind, method) != ("distilbert", "prefix")]


def inputs_of(rows: int, length: int, lengths: list[int], names: tuple[str, ...]) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 200, (rows, length), generator=generator)
    mask = torch.tensor([[int(place < count) for place in range(length)] for count in lengths])
    return {name: {"input_ids": ids, "attention_mask": mask}.get(name, torch.zeros_like(ids)) for name in names}


def prompted(kind: str, method: PromptMethod) -> Any:
    """A small classifier with a prompt that is made of tokens."""
    from toolkit.adapters import prompts

    model = random_encoder(kind)
    return prompts.begin(model, method, PROMPT_IDS, torch_engine.input_names(model, TASK)).eval()


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_prompt_made_of_tokens_is_as_those_tokens_in_the_text(kind: str) -> None:
    import torch

    model = prompted(kind, "prompt")
    given = inputs_of(1, 9, [9], model.input_names)
    ids = given["input_ids"]
    written = torch.cat([ids[:, :1], torch.tensor([PROMPT_IDS]), ids[:, 1:]], dim=1)
    with torch.no_grad():
        found = model(**given, output_hidden_states=True)
        wanted = model.model(input_ids=written, output_hidden_states=True)
    assert torch.allclose(found.logits, wanted.logits, atol=1e-6)
    assert all(states.shape[1] == 9 for states in found.hidden_states)
    text = [0, *range(1 + len(PROMPT_IDS), written.shape[1])]
    assert torch.allclose(found.hidden_states[-1], wanted.hidden_states[-1][:, text], atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_a_prefix_made_of_tokens_is_as_those_tokens_in_front_that_do_not_look_at_the_text(kind: str) -> None:
    import torch

    model = prompted(kind, "prefix")
    given = inputs_of(1, 9, [9], model.input_names)
    count = len(PROMPT_IDS)
    written = torch.cat([torch.tensor([PROMPT_IDS]), given["input_ids"]], dim=1)
    looks = torch.ones(1, 1, count + 9, count + 9, dtype=torch.bool)
    looks[:, :, :count, count:] = False
    with torch.no_grad():
        found = model(**given, output_hidden_states=True).hidden_states
        wanted = model.model(input_ids=written, attention_mask=looks, output_hidden_states=True).hidden_states
    assert len(found) == len(wanted) == 5
    assert torch.allclose(found[-1], wanted[-1][:, count:], atol=1e-5)


@pytest.mark.parametrize(("kind", "method"), PAIRS)
def test_an_answer_does_not_depend_on_the_padding_but_on_the_prompt(kind: str, method: PromptMethod) -> None:
    import torch

    model = prompted(kind, method)
    given = inputs_of(2, 12, [12, 7], model.input_names)
    with torch.no_grad():
        together = model(**given).logits
        alone = model(**{name: value[1:, :7] for name, value in given.items()}).logits
        model.prompt_embeddings.add_(torch.randn_like(model.prompt_embeddings))
        other = model(**given).logits
    assert torch.allclose(together[1:], alone, atol=1e-6)
    assert float((together - other).abs().max()) > 1e-4


def test_answers_per_token_are_those_of_the_text() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForTokenClassification

    from toolkit.adapters import prompts

    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", vocab_size=200, num_labels=3, **ENCODERS["bert"])
    plain = AutoModelForTokenClassification.from_config(config).eval()
    model = prompts.begin(plain, "prompt", PROMPT_IDS, INPUTS).eval()
    given = inputs_of(2, 9, [9, 6], INPUTS)
    with torch.no_grad():
        found = model(**given).logits
        ids = given["input_ids"][:1]
        written = torch.cat([ids[:, :1], torch.tensor([PROMPT_IDS]), ids[:, 1:]], dim=1)
        wanted = plain(input_ids=written).logits
    assert found.shape == (2, 9, 3)
    assert torch.allclose(found[0], wanted[0, [0, *range(4, 12)]], atol=1e-5)


def test_attention_that_takes_no_keys_from_outside_has_no_prefix() -> None:
    with pytest.raises(InputError, match="--adapt prefix: the attention of a distilbert takes no keys"):
        prompted("distilbert", "prefix")


def test_attention_is_not_told() -> None:
    model = prompted("bert", "prompt")
    with pytest.raises(InputError, match="attention of a model with a prompt"):
        model(**inputs_of(1, 9, [9], model.input_names), output_attentions=True)


# --- learned, written and loaded anew

Train = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def train(encoder: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    def run(adapt: str, source: Path = encoder, **given: Any) -> tuple[Path, dict[str, Any]]:
        output = tmp_path_factory.mktemp(adapt)
        return output, run_stage("finetune", source, output, prepared, **{**GIVEN, "adapt": adapt, **given})

    return run


@pytest.fixture(scope="module", params=PROMPTS)
def learned(request: pytest.FixtureRequest, train: Train) -> tuple[str, Path, dict[str, Any]]:
    """A trained checkpoint of each kind of prompt."""
    return (request.param, *train(request.param))


def answers(engine: Any, folder: Path, lengths: list[int] | None = None) -> Any:
    """What an engine says to the texts, one at a time, float32[texts, classes]."""
    encoder = TASK.encoder(folder, {"max_length": 64}, inputs=INPUTS, lengths=lengths)
    return np.concatenate([next(iter(engine.run(encoder(text)).values())) for text in TEXTS])


def without_prompt(folder: Path) -> Any:
    """What the model inside says."""
    engine = torch_engine.load(folder)
    engine.model = engine.model.model
    return answers(engine, folder)


def test_the_prompt_and_the_head_learn_and_nothing_else(
    learned: tuple[str, Path, dict[str, Any]], encoder: Path
) -> None:
    from safetensors.numpy import load_file
    from transformers import AutoModelForSequenceClassification

    method, folder, report = learned
    sizes = {"prompt": TOKENS * 384, "prefix": 2 * 2 * 384 * TOKENS}
    pooler, head = 384 * 384 + 384, 2 * 384 + 2
    assert report["trainable"] == sizes[method] + pooler + head
    assert report["prompt"]["method"] == method and report["prompt"]["tokens"] == TOKENS
    assert report["prompt"]["answer_difference"] < 1e-6 < report["prompt"]["answer_change"]
    names = {path.name for path in folder.rglob("*")}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    before, after = load_file(encoder / "model.safetensors"), load_file(folder / "model.safetensors")
    others = {name for name, value in before.items() if not np.array_equal(value, after[f"bert.{name}"])}
    assert others == {"pooler.dense.weight", "pooler.dense.bias"}
    _, loading = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert loading["unexpected_keys"] == {"prompt_embeddings"}  # who loads it without the toolkit is told
    assert not loading["missing_keys"]


def test_a_prompt_is_part_of_the_model_that_is_loaded(learned: tuple[str, Path, dict[str, Any]]) -> None:
    _, folder, _ = learned
    found = answers(torch_engine.load(folder), folder)
    assert float(np.abs(found - without_prompt(folder)).max()) > 1e-3
    described = checkpoint.inspect(folder, TASK)
    assert (described.prompt_tokens, described.model_limit) == (TOKENS, 512 - TOKENS)
    assert described.labels == ["negative", "positive"]


@pytest.mark.parametrize("engine", ["onnxruntime", "litert"])
def test_artifacts_have_the_prompt_inside(
    learned: tuple[str, Path, dict[str, Any]], tmp_path: Path, engine: str
) -> None:
    _, folder, _ = learned
    artifact = tmp_path / "artifact"
    steps.export(str(folder), str(artifact), engine=engine, lengths=[16, 32])
    description = json.loads((artifact / "artifact.json").read_text())
    assert {tensor["name"] for tensor in description["inputs"]} == set(INPUTS)
    found = answers(engines.get(engine).load(artifact / description["path"]), artifact, description["lengths"])
    assert float(np.abs(found - answers(torch_engine.load(folder), folder)).max()) < 1e-3
    assert float(np.abs(found - without_prompt(folder)).max()) > 1e-3


def test_a_kill_costs_nothing(train: Train, tmp_path: Path) -> None:
    folder, report = train("prefix")
    with pytest.raises(KilledError):
        train("prefix", progress=kill_at("epoch 2", 20), resume=tmp_path)
    again, resumed = train("prefix", resume=tmp_path)
    assert weights(again) == weights(folder)
    assert resumed == report


def test_a_prompt_learns_in_bf16_and_is_proved_in_float32(train: Train) -> None:
    _, report = train("prefix", epochs=1, bf16=True)
    assert report["bf16"] and report["prompt"]["answer_difference"] < 1e-6


def test_all_of_a_model_with_a_prompt_can_learn_on(learned: tuple[str, Path, dict[str, Any]], train: Train) -> None:
    from safetensors.numpy import load_file

    _, folder, _ = learned
    further, report = train("full", folder, epochs=1, learning_rate=1e-3)
    assert report["trainable"] == report["parameters"]
    before, after = load_file(folder / "model.safetensors"), load_file(further / "model.safetensors")
    assert before.keys() == after.keys()
    assert not np.array_equal(before["prompt_embeddings"], after["prompt_embeddings"])
    assert checkpoint.inspect(further, TASK).prompt_tokens == TOKENS


def test_a_model_with_a_prompt_teaches(
    learned: tuple[str, Path, dict[str, Any]], encoder: Path, prepared: Path, tmp_path: Path
) -> None:
    _, folder, _ = learned
    encoding = {"max_length": 64}
    run_stage("teach", folder, tmp_path / "said", prepared, encoding=encoding, hidden_layers=[1, 2])
    model = torch_engine.load_model(folder, TASK)
    examples = TASK.read_examples(prepared, "train")
    context = stages.Context(task=TASK.NAME)
    wanted = torch_engine.answers(model, folder, TASK, examples, encoding, context)
    assert np.allclose(np.load(tmp_path / "said" / "answers.npy"), wanted, atol=1e-5)
    report = run_stage(
        "distill", encoder, tmp_path / "student", prepared, teaching=[str(tmp_path / "said")], encoding=encoding,
        epochs=2, learning_rate=1e-3, hidden_weight=1.0, layer_map={1: 1, 2: 2},
    )  # fmt: skip
    assert report["history"][1]["validation_divergence"] < report["history"][0]["validation_divergence"]
    assert checkpoint.inspect(tmp_path / "student", TASK).prompt_tokens == 0


def test_ranges_count_the_prompt_and_no_padding(learned: tuple[str, Path, dict[str, Any]]) -> None:
    method, folder, _ = learned
    model = torch_engine.load_model(folder, TASK)
    encoder = TASK.encoder(folder, {"max_length": 64})
    examples = training.Examples(TASK, encoder, [Example(text, None) for text in TEXTS], INPUTS)
    found = qat.activations(model, examples)
    query = next(histogram for name, histogram in found.items() if name.endswith("layer.1.attention.self.query"))
    rows = sum(examples.lengths) + (TOKENS * len(TEXTS) if method == "prompt" else 0)
    assert query.counts.sum() == rows * 384


# --- proofs


def test_a_prompt_that_learned_nothing_is_noticed(train: Train) -> None:
    with pytest.raises(ToolkitError, match="The prompt changes no answer"):
        train("prompt", epochs=1, learning_rate=1e-30)


def test_faults_are_caught(learned: tuple[str, Path, dict[str, Any]]) -> None:
    """A prompt that is written wrongly, one that is not loaded, and one that no attention sees."""
    import torch

    from toolkit.adapters import prompts

    _, folder, _ = learned
    trained = torch_engine.load_model(folder, TASK)
    given = inputs_of(4, 16, [16, 12, 9, 16], INPUTS)

    def said(model: Any) -> Any:
        with torch.no_grad():
            return model(**given).logits.numpy()

    before = torch.zeros_like(trained.prompt_embeddings)
    proof = prompts.prove(trained, torch_engine.load_model(folder, TASK), before, said)
    assert proof["answer_difference"] == 0 < proof["answer_change"]

    wrong = torch_engine.load_model(folder, TASK)
    with torch.no_grad():
        wrong.prompt_embeddings.copy_(10 * wrong.prompt_embeddings.flip(-1))
    for loaded in (wrong, wrong.model):
        with pytest.raises(ToolkitError, match="does not answer like the model that was trained"):
            prompts.prove(trained, loaded, before, said)
    with pytest.raises(ToolkitError, match="The prompt changes no answer"):
        prompts.prove(trained, trained, before, lambda model: said(trained.model))


def test_a_folder_whose_prompt_is_lost_is_refused(learned: tuple[str, Path, dict[str, Any]], tmp_path: Path) -> None:
    _, folder, _ = learned
    shutil.copytree(folder, tmp_path / "damaged")
    config = json.loads((folder / "config.json").read_text())
    for prompt, words in (({"method": "prompt", "tokens": 5}, "of 5 tokens"), (None, "of 0 tokens")):
        (tmp_path / "damaged" / "config.json").write_text(json.dumps({**config, "prompt": prompt}))
        with pytest.raises(InputError, match=f"prompt {words}, the weights have one of {TOKENS}"):
            checkpoint.inspect(tmp_path / "damaged", TASK)


def test_a_prompt_of_another_kind_is_not_loaded(learned: tuple[str, Path, dict[str, Any]], tmp_path: Path) -> None:
    method, folder, _ = learned
    shutil.copytree(folder, tmp_path / "damaged")
    config = json.loads((folder / "config.json").read_text())
    for said in ("prefix" if method == "prompt" else "prompt", "postfix"):
        described = {**config, "prompt": {"method": said, "tokens": TOKENS}}
        (tmp_path / "damaged" / "config.json").write_text(json.dumps(described))
        with pytest.raises(InputError, match="tells of a prompt that is not among its weights"):
            torch_engine.load_model(tmp_path / "damaged", TASK)


# --- what is refused, in one line and before anything is run


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("prune", "--layers", "1"), ("can be neither cut nor balanced", "--adapt")),
        (("distill", "--layers", "1"), ("can be neither cut nor balanced",)),
        (("distill", "--student", "ENCODER", "--attention-weight", "1"), ("--attention-weight", "no other's")),
        (("convert", "--compress"), ("--compress", "a model with a prompt cannot be cut")),
        (("quantize", "--engine", "litert", "--balance", "0.7"), ("can be neither cut nor balanced",)),
        (("finetune", "--adapt", "lora"), ("--adapt lora", "has a prompt already", "--adapt full")),
        (("finetune", "--adapt", "prompt"), ("--adapt prompt", "has a prompt already")),
    ],
)
def test_what_cannot_be_done_with_a_prompt(
    learned: tuple[str, Path, dict[str, Any]], encoder: Path, few: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], given: tuple[str, ...], words: tuple[str, ...],
) -> None:  # fmt: skip
    verb, *options = (str(encoder) if word == "ENCODER" else word for word in given)
    output, cache = tmp_path / "out", tmp_path / "cache"
    done = in_process(
        [verb, str(learned[1]), "--data", str(few), *options, "-o", str(output), "--cache-dir", str(cache)], capsys
    )
    assert_refused(done, *words)
    assert_nothing_half_written(output, cache)


def test_no_part_of_a_model_with_a_prompt_is_cut() -> None:
    with pytest.raises(InputError, match="can be neither cut"):
        architecture.cut(prompted("bert", "prompt"), architecture.Cut(layers=[0]))


def test_texts_leave_room_for_the_prompt(encoder: Path, few: Path, tmp_path: Path) -> None:
    def plan(adapt: str, **training: Any) -> planning.Plan:
        return planning.plan(
            planning.options(
                model=str(encoder), data=str(few), target="raspberry-pi-5", output=str(tmp_path / "o"), adapt=adapt,
                training=training, max_size_mb=1.0,
            )
        )  # fmt: skip

    assert plan("lora").recipe.prepare["model_limit"] == 512
    made = plan("prefix", prompt_tokens=40).recipe
    assert made.prepare["model_limit"] == checkpoint.inspect(encoder, TASK).with_prompt("prefix", 40).model_limit == 472
    assert (made.compress.when, made.compress.reason) == ("never", "a model with a prompt cannot be cut")
    with pytest.raises(InputError, match="--max-length 480: the model takes at most 472 tokens"):
        prepare(encoder, few, tmp_path / "prepared", max_length=480, model_limit=made.prepare["model_limit"])
    with pytest.raises(InputError, match=r"--adapt prompt: of the 512 tokens .* a prompt of 508 leaves too few"):
        plan("prompt", prompt_tokens=508)


def test_images_have_no_prompt(encoder: Path) -> None:
    described = checkpoint.inspect(encoder, TASK)
    with pytest.raises(InputError, match=r"--adapt prompt: .* image-classification is about none"):
        recipe.as_tuned(described, tasks.get("image-classification"), "prompt", 8)


def test_a_student_from_a_config_begins_without_a_prompt(learned: tuple[str, Path, dict[str, Any]]) -> None:
    _, folder, _ = learned
    bare = checkpoint.bare(folder / "config.json", folder, TASK, ["negative", "positive"])
    assert bare.prompt_tokens == 0
