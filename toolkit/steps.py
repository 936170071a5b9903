"""Single stages on folders of the user's: what `toolkit finetune`, `export` and `quantize` call.

Each takes an input folder and writes an output folder in one step, with the stage's receipt beside its files.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from toolkit import architecture, conversion, demo, engines, graphs, modules, planning, quantization, stages
from toolkit import checkpoint as checkpoints
from toolkit import export as formats
from toolkit.cache import open_cache
from toolkit.checkpoint import Checkpoint
from toolkit.compression import Chain
from toolkit.errors import InputError
from toolkit.provenance import RECEIPT, trained_on
from toolkit.runner import Finished, Reporter, Runner, Silent
from toolkit.storage import check_output, copy_folder, explained, publish_folder, sha256_path, write_json
from toolkit.training import pseudo_labels, trackers


def publish(finished: Finished, output: Path, overwrite: bool, **facts: Any) -> dict[str, Any]:
    """Write a stage's output with its receipt, and `facts` in it; what the stage reports."""
    with explained("writing the output", output), publish_folder(output, replace=overwrite) as aside:
        copy_folder(finished.output, aside)
        write_json(aside / RECEIPT, {**finished.receipt, **facts})
    return {"output": str(output), **finished.report}


def _taught(made: planning.Plan, data: Finished) -> list[dict[str, Any]]:
    """What a receipt says of the data that a plan's model learned from."""
    found = trained_on(made.recipe.prepare, made.recipe.data_sha256, made.recipe.seed, data)
    return [found.model_dump(mode="json")]


def is_first_process() -> bool:
    """False in every process but one of those that `accelerate launch` started."""
    return int(os.environ.get("RANK", "0")) == 0


def finetune(
    output: str,
    options: Mapping[str, Any],
    reporter: Reporter | None = None,
    around: Callable[[Runner], AbstractContextManager[Any]] = contextlib.nullcontext,
    *,
    unlabeled: str | None = None,
    unlabeled_column: str | None = None,
) -> dict[str, Any]:
    """Fine-tune a checkpoint; `options` are fields of `toolkit.planning.Options`. Writes a Hugging Face folder.

    With `unlabeled`, a file of examples without labels, it is fine-tuned again on its own confident answers to them,
    and the model with the better validation score is kept. `around` is entered with the runner for the time of the run.
    Under `accelerate launch` every process trains its share in place, and the first one writes.
    """
    if not options.get("model"):
        raise InputError("Name a model: a Hugging Face folder or `demo`; or what learns more with --continue-from.")
    overwrite = bool(options.get("overwrite"))
    made = planning.plan(planning.options(**{**options, "finetune": True, "output": output}), marker=RECEIPT)
    runner = Runner(made.cache, made.recipe.task, made.recipe.seed, reporter or Silent(), made.options.force)
    if unlabeled is not None:
        _check_self_training(made, unlabeled, unlabeled_column)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _finetune_here(Path(output), made, conversion.prepare(runner, made), overwrite, runner.reporter)
    facts: dict[str, Any] = {}
    with around(runner):
        data = conversion.prepare(runner, made)
        finished = conversion.finetune(runner, made, data)
        if unlabeled is not None and not finished.report["interrupted"]:
            finished, facts["self_training"] = _self_trained(runner, made, data, finished, unlabeled, unlabeled_column)
    return {**publish(finished, Path(output), overwrite, trained_on=_taught(made, data), **facts), **facts}


def _check_self_training(made: planning.Plan, unlabeled: str, column: str | None) -> None:
    """Refuse self-training that cannot be done. Raises InputError."""
    pseudo_labels.check(made.task)
    made.task.check_unlabeled(Path(unlabeled), column)
    parameters = made.recipe.finetune.parameters or {}
    if parameters.get("folds"):
        raise InputError("--training folds does not go with --unlabeled. Leave one out.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("--unlabeled: self-training runs in one process. Leave `accelerate launch` away.")


def _self_trained(
    runner: Runner, made: planning.Plan, data: Finished, first: Finished, unlabeled: str, column: str | None
) -> tuple[Finished, dict[str, Any]]:
    """The better of a fine-tuned model and of one that learned from that one's confident answers too, and what to say
    of both."""
    chain = Chain(runner, data, planning.bf16_pays(made.task, made.checkpoint))
    text_file, sha256 = _text_file(unlabeled, column)
    said = chain.teach(checkpoints.inspect(first.output, made.task), unlabeled=text_file, unlabeled_sha256=sha256)
    second = conversion.finetune(runner, made, data, said)
    scores = [float(each.report["validation_score"]) for each in (first, second)]
    kept = scores[1] > scores[0]
    told = {name: second.report[name] for name in ("unlabeled", "pseudo_labelled", "of_class")}
    return second if kept else first, {**told, "score_before": scores[0], "score_after": scores[1], "kept": kept}


def _finetune_here(
    output: Path, made: planning.Plan, data: Finished, overwrite: bool, reporter: Reporter
) -> dict[str, Any]:
    """One process of several: train in this process; rank 0 publishes."""
    module = stages.get("finetune")
    parameters = module.Parameters.model_validate(
        {**(made.recipe.finetune.parameters or {}), "encoding": data.report["encoding"]}
    )
    context = stages.Context(task=made.recipe.task, seed=made.recipe.seed, threads=1, data=data.output)
    if is_first_process():
        reporter.started("finetune")
        context = replace(context, progress=functools.partial(reporter.progress, "finetune"))
        with explained("writing the output", output), publish_folder(output, replace=overwrite) as aside:
            report = module.run(made.checkpoint.folder, aside, parameters, context)
            write_json(aside / RECEIPT, {"stage": "finetune", "report": report, "trained_on": _taught(made, data)})
        return {"output": str(output), **report}
    # The other ranks' best epoch is rank 0's: nothing is written here.
    return {"output": str(output), **module.run(made.checkpoint.folder, output, parameters, context)}


def _plan(output: str, options: Mapping[str, Any]) -> planning.Plan:
    """The plan of a stage that works on the trained checkpoint that `options` name. Raises InputError."""
    folder = Path(str(options["model"]))
    if graphs.is_graph(str(folder)):
        raise InputError(f"{folder} is an ONNX file: nothing can be trained or cut in it; give the checkpoint.")
    if str(folder) == demo.NAME and not folder.exists():
        raise InputError(f"The demo's model is not trained yet; first `toolkit finetune {demo.NAME} -o tuned`.")
    if folder.is_dir() and not options.get("adapter"):  # which may bring a head
        _trained(folder, options.get("task"), bool(options.get("allow_code")))
    return planning.plan(
        planning.options(**{**options, "finetune": False, "split": True, "output": output}), marker=RECEIPT
    )


def _trained(folder: Path, task: str | None, allow_code: bool) -> Checkpoint:
    """The checkpoint in a folder. Raises InputError if it was not trained for the task, or has to run code."""
    checkpoints.refuse_code(folder, allow_code)
    wanted = planning.task_of(str(folder), task)
    found = checkpoints.inspect(folder, wanted)
    if found.labels is None:
        raise InputError(f"{folder} is not trained for {wanted.NAME}; fine-tune it first with `toolkit finetune`.")
    return found


def _chain(made: planning.Plan, reporter: Reporter | None) -> Chain:
    """The chain that works on a plan's checkpoint and its prepared data."""
    runner = Runner(made.cache, made.recipe.task, made.recipe.seed, reporter or Silent(), made.options.force)
    return Chain(runner, conversion.prepare(runner, made), planning.bf16_pays(made.task, made.checkpoint))


def _check_labels(teacher: Checkpoint, others: Sequence[Checkpoint]) -> None:
    """Refuse teachers that answer other questions than the first one."""
    known = ", ".join(teacher.labels or [])
    for each in others:
        if each.labels != teacher.labels:
            raise InputError(
                f"{each.folder}: this teacher knows the labels {', '.join(each.labels or [])}; {teacher.folder} knows "
                f"{known}. Teachers must have the same labels in the same order."
            )


def _check_weights(folder: Path) -> None:
    """Refuse a student that is a config only, and say how to begin from one: weights may have been forgotten."""
    if (folder / "config.json").is_file() and not any(
        path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt") for path in folder.iterdir()
    ):
        raise InputError(
            f"{folder} has no weights. To begin from random ones, name its config: --student {folder / 'config.json'}"
        )


def _text_file(unlabeled: str | None, column: str | None) -> tuple[dict[str, Any] | None, str | None]:
    """Texts without labels as `teach` takes them, and the file's hash; None and None if there are none."""
    if unlabeled is None:
        return None, None
    return {"unlabeled": unlabeled, "unlabeled_column": column}, sha256_path(Path(unlabeled))


def _shape(checkpoint: Checkpoint) -> dict[str, int]:
    return architecture.shape(SimpleNamespace(**checkpoint.config))


def _student(
    made: planning.Plan, student: str | None, layers: int | None, width: int | None
) -> tuple[Checkpoint, dict[str, Any]]:
    """What the student is made from, and the parameters that say how. Raises InputError."""
    if student is None and layers is None and width is None:
        raise InputError("Name the student: --layers or --width, a number, or --student, a folder or a config.json.")
    teacher, source = made.checkpoint, made.checkpoint
    shape: dict[str, Any] = {}
    if student is not None and Path(student).suffix == ".json" and Path(student).is_file():
        if layers is not None or width is not None:
            raise InputError(f"{student} says already how large the student is; leave out --layers and --width.")
        source = checkpoints.bare(Path(student), teacher.folder, made.task, list(teacher.labels or []))
        shape["config"] = source.config
    elif student is not None and modules.parse(student):
        folder = modules.imported(student, None, made.cache.folder, False)
        source = checkpoints.inspect(folder, made.task)
    elif student is not None:
        _check_weights(Path(student))
        checkpoints.refuse_code(Path(student), made.options.allow_code)
        source = checkpoints.inspect(Path(student), made.task)
    if source.parameters > teacher.parameters:
        raise InputError(
            f"{student}: the student has {source.parameters / 1e6:.1f} million weights, its teacher "
            f"{teacher.parameters / 1e6:.1f}; a student is the smaller one."
        )
    if layers is not None or width is not None:
        architecture.refuse_prompt(source.config)
    if layers is not None:
        shape["layers"] = architecture.evenly(source.layers, layers)
        if student is None and width is None and layers >= source.layers:
            raise InputError(
                f"--layers {layers}: the teacher has {source.layers} layers; a student is the smaller one."
            )
    if width is not None:
        architecture.heads_of(_shape(source), width)
        shape["width"] = width
    return source, shape


def distill(
    output: str,
    options: Mapping[str, Any],
    *,
    teachers: Sequence[str] = (),
    student: str | None = None,
    layers: int | None = None,
    width: int | None = None,
    hidden: float = 0.0,
    attention: float = 0.0,
    unlabeled: str | None = None,
    unlabeled_column: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
    around: Callable[[Runner], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> dict[str, Any]:
    """Train a small student on the answers of the model that `options` name, and of further `teachers`.

    The student is a folder, or a network as FILE.py:FUNCTION; or the teacher with `layers` of its layers, cut to
    `width`; or a config file, of which a model with random weights is made. `hidden` and `attention` weigh the losses
    between layers; `parameters` are further ones of the stage. Writes a Hugging Face folder. Raises InputError.
    """
    trackers.check((parameters or {}).get("track", ()))
    made = _plan(output, options)
    others = [_trained(Path(name), made.task.NAME, made.options.allow_code) for name in teachers]
    if unlabeled:
        made.task.check_unlabeled(Path(unlabeled), unlabeled_column)
    teacher = made.checkpoint
    _check_labels(teacher, others)
    source, shape = _student(made, student, layers, width)
    if attention:
        if teacher.prompt_tokens or source.prompt_tokens:
            raise InputError(
                "--attention-weight: the attention of a model with a prompt can be compared with no other's. Leave it "
                "out; answers and hidden states can be learned."
            )
        heads = architecture.heads_of(_shape(source), width) if width is not None else source.heads
        importlib.import_module("toolkit.stages.distill").check_heads(heads, teacher.heads)
    chain = _chain(made, reporter)
    made.task.fits(source, chain.data.report["encoding"], f"--student {student}")
    depth = len(shape.get("layers") or range(source.layers))
    layer_map: dict[int, int] = {}
    if hidden or attention:
        if not depth or not teacher.layers:
            raise InputError("--hidden-weight and --attention-weight need models whose layers are known.")
        layer_map = {mine: architecture.matching(mine, depth, teacher.layers) for mine in range(depth + 1)}
    given = {**(parameters or {}), **shape, "hidden_weight": hidden, "attention_weight": attention}
    given |= {"layer_map": layer_map} if layer_map else {}
    text_file, texts_sha256 = _text_file(unlabeled, unlabeled_column)
    with around(chain.runner), chain.runner.warmed():
        teaching = [
            chain.teach(
                each,
                hidden_layers=sorted(set(layer_map.values())) if hidden and place == 0 else (),
                attention_layers=sorted(set(layer_map.values()) - {0}) if attention and place == 0 else (),
                unlabeled=text_file,
                unlabeled_sha256=texts_sha256,
            )
            for place, each in enumerate([teacher, *others])
        ]
        finished = chain.distill(
            source, teaching, given,
            title="distill", reason=f"{depth} layers learn from {len(teaching)} teachers",
        )  # fmt: skip
    taught = _taught(made, chain.data)
    return publish(finished, Path(output), bool(options.get("overwrite")), trained_on=taught)


def prune(
    output: str,
    options: Mapping[str, Any],
    *,
    parameters: Mapping[str, Any],
    learn_from_itself: bool = True,
    unlabeled: str | None = None,
    unlabeled_column: str | None = None,
    reporter: Reporter | None = None,
    around: Callable[[Runner], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> dict[str, Any]:
    """Take parts out of a trained checkpoint and let it recover; `parameters` are the stage's.

    It recovers on its own answers from before, to the texts of `unlabeled` too, or on the labels. Writes a Hugging Face
    folder. Raises InputError.
    """
    if unlabeled and not learn_from_itself:
        raise InputError(f"{unlabeled} has no labels to recover on; leave out --unlabeled or --from-labels.")
    trackers.check(parameters.get("track", ()))
    made = _plan(output, options)
    if unlabeled:
        made.task.check_unlabeled(Path(unlabeled), unlabeled_column)
    stage = importlib.import_module("toolkit.stages.prune")
    stage.check(stage.Parameters.model_validate(parameters), made.checkpoint, made.task)
    chain = _chain(made, reporter)
    with around(chain.runner), chain.runner.warmed():
        teaching = []
        if learn_from_itself and parameters.get("epochs", 1):
            text_file, texts_sha256 = _text_file(unlabeled, unlabeled_column)
            teaching = [chain.teach(made.checkpoint, unlabeled=text_file, unlabeled_sha256=texts_sha256)]
        finished = chain.prune(made.checkpoint, teaching, parameters, title="prune", reason="asked for")
    taught = _taught(made, chain.data)
    return publish(finished, Path(output), bool(options.get("overwrite")), trained_on=taught)


def export(
    model: str,
    output: str,
    *,
    engine: str,
    lengths: list[int],
    task: str | None = None,
    opset: int | None = None,
    cache_dir: str | None = None,
    overwrite: bool = False,
    allow_code: bool = False,
    adapter: str | None = None,
    preprocessing: str | None = None,
    graph_output: str | None = None,
    fix: Mapping[str, int] | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Export a checkpoint, or an ONNX file, to the format of `engine`. Writes an artifact folder.

    `lengths` are those of a LiteRT file; `fix` gives open axes of an ONNX file a size, by name: `{"batch": 1}`."""
    check_output(Path(output), overwrite, RECEIPT)
    engines.exported_for(engine)
    cache = open_cache(Path(cache_dir) if cache_dir else None)
    folder = Path(model)
    given = planning.Options(
        model, task=task, adapter=adapter, allow_code=allow_code, preprocessing=preprocessing, graph_output=graph_output
    )
    planning.check_graph(given)
    if adapter is not None or graphs.is_graph(model):
        folder = planning.model_folder(given, cache)
    checkpoint = _trained(folder, task, allow_code)
    if not checkpoint.is_graph and max(lengths) > checkpoint.model_limit:
        raise InputError(f"--lengths {max(lengths)}: the model takes at most {checkpoint.model_limit} tokens.")
    planning.check_fix(fix or {}, checkpoint)
    if fix and engines.FORMAT_OF[engine] != "onnx":
        raise InputError(f"--fix is for ONNX files; the lengths of a file for {engine} are those of --lengths.")
    parameters = formats.settings(engine, lengths=lengths, opset=opset, fix=fix)
    wanted = planning.task_of(str(folder), task)
    runner = Runner(cache, wanted.NAME, 0, reporter or Silent())
    finished = runner.run(
        "export", checkpoint.folder, parameters, title=f"export for {engine}", reason="asked for",
        inputs={"source": checkpoint.sha256},
    )  # fmt: skip
    return publish(finished, Path(output), overwrite)


def quantize(
    model: str,
    output: str,
    *,
    method: str,
    cache_dir: str | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    options: Mapping[str, Any] | None = None,
    parameters: Mapping[str, Any] | None = None,
    around: Callable[[Runner], AbstractContextManager[Any]] = contextlib.nullcontext,
    **wanted: Any,
) -> dict[str, Any]:
    """Quantize an artifact folder, or a trained checkpoint for an engine. Writes an artifact folder.

    `parameters` are further ones of the stage, `wanted` fields of `toolkit.quantization.Wanted`, `options` say where
    the data is. Raises InputError.
    """
    return quantization.quantize(
        model,
        output,
        quantization.Wanted(parameters={**(parameters or {}), "method": method}, **wanted),
        {**(options or {}), "cache_dir": cache_dir, "overwrite": overwrite},
        reporter=reporter,
        around=around,
    )
