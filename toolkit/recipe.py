"""Recipes: what a conversion will do, with all parameters and the reason for each step.

`plan` turns a model, its data and a target into a recipe without running anything. A recipe is complete: the same
recipe on the same inputs gives the same bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolkit import architecture, engines
from toolkit import export as formats
from toolkit.adapters import PROMPTS, Method
from toolkit.checkpoint import Checkpoint
from toolkit.errors import InputError
from toolkit.export import INTEGER, NO_INTEGER_TEXTS, OLDEST_OPSET, STATIC
from toolkit.gates import score
from toolkit.target import EngineName, EngineSupport, Precision, Target
from toolkit.tasks.task import Task

SCHEMA_VERSION = 1
LEAST_TOKENS = 8  # of a text
CALIBRATED = (*STATIC, "fp16")  # methods that look at examples: at ranges, and at what overflows


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


# The limits among the budgets, and the option by which a user gives one.
LIMITS = {"max_latency_ms": "--max-latency", "max_size_mb": "--max-size", "max_memory_mb": "--max-memory"}


class Budgets(_Strict):
    """What the result must keep to. `given_by` names the limits that the user did not give, and who did."""

    min_score: str = score.DEFAULT
    max_latency_ms: float | None = None
    max_size_mb: float | None = None
    max_memory_mb: float | None = None
    given_by: dict[str, str] = {}

    def of(self, limit: str) -> tuple[float | None, str]:
        """One of `LIMITS`, and what gave it: the option, or the target's profile."""
        value: float | None = getattr(self, limit)
        return value, self.given_by.get(limit, LIMITS[limit])


class CandidatePlan(_Strict):
    """One engine and precision that the target allows."""

    engine: EngineName
    precision: Precision
    method: str | None
    reason: str

    @property
    def name(self) -> str:
        return f"{self.engine} {self.precision}"


class Skipped(_Strict):
    """Something that the target allows and this run does not try."""

    what: str
    reason: str


class FinetunePlan(_Strict):
    """The fine-tuning to run, or None as parameters if there is none."""

    parameters: dict[str, Any] | None
    reason: str


class Narrow(_Strict):
    """Shares that pruning takes: of the feed-forward units, and of the heads with the width; of a network of
    convolutions, of the channels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ffn: float = Field(0.0, ge=0, lt=1)
    heads: float = Field(0.0, ge=0, lt=1)
    channels: float = Field(0.0, ge=0, lt=1)

    def __str__(self) -> str:
        named = ((self.heads, "width"), (self.ffn, "ffn"), (self.channels, "channels"))
        parts = [f"{100 * share:g}% of the {name}" for share, name in named if share]
        return f"{' and '.join(parts)} pruned" if parts else ""


# The first is tried first; a budget may ask for any of them.
NARROW = (
    Narrow(ffn=0.75, heads=0.42),
    Narrow(ffn=0.67, heads=0.25),
    Narrow(ffn=0.5),
    Narrow(ffn=0.25),
    Narrow(ffn=0.75, heads=0.5),
)
# The same for networks of convolutions.
NARROW_CHANNELS = tuple(Narrow(channels=share) for share in (0.5, 0.4, 0.3, 0.2, 0.65))
CHANNEL_MULTIPLE = 8  # what kernels of convolutions work on, and narrow enough for layers of 16 channels


# The validation split is small: its score is a few points from the truth, and later epochs add a few; many, where norms
# have to find the statistics of fewer channels first.
HOPELESS, HOPELESS_CHANNELS = 0.06, 0.2


class CompressPlan(_Strict):
    """Whether the compression chain runs, and the settings that its search may choose from, the first tried first."""

    when: Literal["always", "if a budget asks", "never"]
    reason: str
    unlabeled: str | None = None
    unlabeled_sha256: str | None = None
    unlabeled_column: str | None = None
    unlabeled_limit: int = Field(50_000, ge=1)
    coverage: list[float] = [0.99, 0.98, 0.95]  # of the vocabulary; none: there is none
    layers: list[int] = []  # of a student; none: nothing is distilled
    narrow: list[Narrow] = list(NARROW)
    multiple: int = 1
    distill: dict[str, Any] = {}
    prune: dict[str, Any] = {}
    hopeless: float = Field(HOPELESS, gt=0, description="How far below its floor an epoch's score may be to go on")
    trials: int = Field(4, ge=1)


class Recipe(_Strict):
    """All of a conversion's steps and parameters."""

    schema_version: Literal[1] = 1
    toolkit_version: str
    model: str
    weights: str | None = None  # of a model that is given as FILE.py:FUNCTION
    adapter: str | None = None  # merged into the model
    preprocessing: str | None = None  # of an ONNX file
    graph_output: str | None = None
    fix: dict[str, int] = {}  # sizes of open axes of ONNX files, by name
    model_sha256: str
    data_sha256: str
    task: str
    target: str
    threads: int
    seed: int
    prepare: dict[str, Any]
    finetune: FinetunePlan
    compress: CompressPlan = CompressPlan(when="never", reason="not asked for")
    candidates: list[CandidatePlan] = Field(min_length=1)
    skipped: list[Skipped] = []
    budgets: Budgets = Budgets()

    def to_yaml(self) -> str:
        """The recipe as YAML text, keys in reading order."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def load(path: Path) -> Recipe:
    """Read a recipe file. Raises InputError naming the file and the key."""
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"Cannot read recipe {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a YAML file: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {key}: {first['msg']}") from error


def _candidate(
    engine: EngineSupport, precision: Precision, convolutional: bool, texts: bool
) -> CandidatePlan | Skipped:
    name = f"{engine.name} {precision}"
    if engines.FORMAT_OF[engine.name] == "onnx" and (engine.onnx_opset_max or OLDEST_OPSET) < OLDEST_OPSET:
        return Skipped(
            what=name,
            reason=f"{engine.name} {engine.versions or ''} reads ONNX up to opset {engine.onnx_opset_max}; this "
            f"version writes {OLDEST_OPSET} and later",
        )
    if precision not in engines.KINDS[engine.name].precisions:
        return Skipped(what=name, reason=f"this version cannot make {precision} artifacts for {engine.name}")
    method = engines.KINDS[engine.name].precisions[precision]
    if engine.io == "integer":
        if precision != "int8" or texts:
            why = NO_INTEGER_TEXTS if texts else f"{precision} is none"
            return Skipped(what=name, reason=f"it takes files of integers alone, inputs and outputs too, and {why}")
        method = INTEGER
    elif convolutional and method == "dynamic-int8":  # convolutions gain nothing from ranges that are found at run time
        method = "static-int8"
    how = "float export" if method is None else f"{method} of the float export"
    where = "" if engine.processor == "cpu" else f" on the {engine.processor}"
    return CandidatePlan(
        engine=engine.name,
        precision=precision,
        method=method,
        reason=f"{how}; the target runs {engine.name}{where} in {precision}",
    )


def candidates(
    target: Target, convolutional: bool = False, texts: bool = False
) -> tuple[list[CandidatePlan], list[Skipped]]:
    """All engine and precision pairs of a target, split into those that can be made here and those that cannot.
    `texts`: the model reads texts.

    Raises InputError if none can, saying what the target wants instead.
    """
    if not target.engines:
        wanted = " ".join(f"{other.name}: {other.note}" for other in target.other_runtimes)
        raise InputError(
            f"Nothing can be made for target '{target.name}': this version builds for no runtime of it. {wanted}"
        )
    pairs = [
        _candidate(engine, precision, convolutional, texts)
        for engine in target.engines
        for precision in engine.precisions
    ]
    chosen = [pair for pair in pairs if isinstance(pair, CandidatePlan)]
    skipped = [pair for pair in pairs if isinstance(pair, Skipped)]
    if not chosen:
        raise InputError(f"Nothing can be made for target '{target.name}': {skipped[0].reason}.")
    return chosen, skipped


def of_graph(
    chosen: list[CandidatePlan], skipped: list[Skipped], precision: str
) -> tuple[list[CandidatePlan], list[Skipped]]:
    """What of a target's candidates can be made of an ONNX file in a precision. Raises InputError if none can."""
    kept: list[CandidatePlan] = []
    left = list(skipped)
    for plan in chosen:
        form = engines.FORMAT_OF[plan.engine]
        if not formats.KINDS[form].from_onnx:
            left.append(Skipped(what=plan.name, reason=f"{plan.engine} files are not made from ONNX files"))
        elif precision == "fp32":
            kept.append(plan)
        elif form != "onnx":
            left.append(Skipped(what=plan.name, reason=f"{plan.engine} files are made from ONNX files in float alone"))
        elif plan.precision == precision:
            kept.append(plan.model_copy(update={"method": None, "reason": f"as given: it is {precision} already"}))
        else:
            left.append(Skipped(what=plan.name, reason=f"the ONNX file is {precision} already"))
    if not kept:
        raise InputError(f"Nothing can be made of this ONNX file: {left[0].what}: {left[0].reason}.")
    return kept, left


def compress_plan(
    checkpoint: Checkpoint,
    wanted: bool | None,
    *,
    budgets: Budgets,
    multiple: int,
    bf16: bool,
    texts: Mapping[str, str | None],
    keeps_width: bool = False,
    convolutional: bool = False,
) -> CompressPlan:
    """The chain as told; if not told, it runs when a budget is not met without it. `texts` are the plan's fields that
    name examples without labels. Raises InputError if it is asked for and cannot be done to this architecture."""
    asked = [given_by for value, given_by in map(budgets.of, LIMITS) if value is not None]
    if wanted is False or (wanted is None and not asked):
        reason = "--no-compress" if wanted is False else "neither --compress nor a budget asks for it"
        return CompressPlan(when="never", reason=reason)
    when: Literal["always", "if a budget asks"] = "always" if wanted else "if a budget asks"
    why = "--compress" if wanted else f"runs if {' or '.join(asked)} is not met without it"
    if convolutional and not keeps_width:
        return CompressPlan(
            when=when, reason=why, coverage=[], narrow=list(NARROW_CHANNELS), multiple=CHANNEL_MULTIPLE,
            prune={"epochs": 10, "learning_rate": 1e-3, "bf16": False}, hopeless=HOPELESS_CHANNELS, **texts,
        )  # fmt: skip
    known, model_type = checkpoint.layers, str(checkpoint.config.get("model_type"))
    cannot = None
    if checkpoint.prompt_tokens:
        cannot = "a model with a prompt cannot be cut"
    elif model_type not in architecture.FAMILIES or known < 2:
        cannot = (
            f"a {model_type} of {known} layers cannot be cut; known: {', '.join(architecture.FAMILIES)}, from 2 layers"
        )
    if cannot:
        if wanted:
            raise InputError(f"--compress: {checkpoint.folder}: {cannot}.")
        return CompressPlan(when="never", reason=cannot)
    # Many texts are seen twice, few of them more often: what counts is how many answers a student has learned from.
    epochs = (2, 2) if texts["unlabeled"] else (6, 4)
    learning = {"learning_rate": 1.5e-4, "bf16": bf16}
    return CompressPlan(
        when=when,
        reason=why,
        **texts,
        layers=layer_ladder(known),
        narrow=[each for each in NARROW if not each.heads] if keeps_width else list(NARROW),
        multiple=multiple,
        distill={"epochs": epochs[0], **learning},
        prune={"epochs": epochs[1], **learning},
    )


def layer_ladder(layers: int) -> list[int]:
    """How many layers a student may have, the first to be tried first: half of them, then more, then fewer."""
    half = max(1, layers // 2)
    fewer = sorted({max(1, layers // 3), max(1, layers // 6)} - {half}, reverse=True)
    more = [count for count in [-(-2 * layers // 3)] if half < count < layers]
    return [half, *more, *fewer]


def finetune_plan(checkpoint: Checkpoint, wanted: bool | None, parameters: dict[str, Any]) -> FinetunePlan:
    """Whether to fine-tune: as told, else if the checkpoint is not trained for its task."""
    trained = checkpoint.labels is not None
    if wanted is False and not trained:
        raise InputError(
            f"{checkpoint.folder} is not trained for the task ({checkpoint.architecture}); it cannot be converted "
            "without fine-tuning. Leave --no-finetune away."
        )
    if wanted or (wanted is None and not trained):
        why = "asked for" if trained else f"{checkpoint.architecture} has no head that was trained for the task"
        return FinetunePlan(parameters=parameters, reason=why)
    return FinetunePlan(parameters=None, reason=f"{checkpoint.architecture} is trained already")


def as_tuned(checkpoint: Checkpoint, task: Task, method: Method, prompt_tokens: int) -> Checkpoint:
    """The checkpoint as fine-tuning will describe it. Raises InputError for a method that it cannot take."""
    if method == "full":
        return checkpoint
    if checkpoint.prompt_tokens:
        raise InputError(
            f"--adapt {method}: {checkpoint.folder} has a prompt already; train all of it with --adapt full."
        )
    if method not in PROMPTS:
        return checkpoint
    if "input_ids" not in task.INPUT_NAMES:
        raise InputError(f"--adapt {method}: a prompt stands in front of a text, and {task.NAME} is about none.")
    tuned = checkpoint.with_prompt(method, prompt_tokens)
    if tuned.model_limit < LEAST_TOKENS:
        raise InputError(
            f"--adapt {method}: of the {checkpoint.model_limit} tokens that {checkpoint.folder} takes, a prompt of "
            f"{prompt_tokens} leaves too few for the texts."
        )
    return tuned
