"""Seeded faults: what an export can do wrong, whether `toolkit check` and `toolkit bisect` name it, and false alarms.

    python benchmarks/faults.py --text tuned/ --image mobilenet/ --reviews reviews.csv --images folder/

`tuned/` is a fine-tuned text classifier (BERT), `mobilenet/` a network of convolutions as `toolkit finetune` writes it.
Each fault is put into the preprocessing, the graph or the labels of an artifact that is otherwise sound, as an app or
another exporter would. Caught means that the step is named, and for a fault inside the model the module. The sound
artifacts, in every precision that the formats have, must raise no alarm. Writes a record to `benchmarks/results/`.

The faults are tested on small models in `tests/test_faults.py`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import bisect as bisection
from toolkit import builds, steps
from toolkit import check as checks
from toolkit.builds import Build
from toolkit.engines import Arrays
from toolkit.runner import library_versions
from toolkit.runtime.encoder import Encoder
from toolkit.runtime.image import ImageEncoder, decode
from toolkit.storage import write_json

LENGTHS = [16, 32, 64]
TEXT_BUILDS = {
    "onnxruntime": (None, "dynamic-int8", "weight-int8", "weight-int4", "fp16", "bf16"),
    "tensorrt": (None, "static-int8", "weight-int8", "fp16", "bf16"),
    "litert": (None, "dynamic-int8", "weight-int8", "weight-int4", "fp16"),
}
IMAGE_BUILDS = {
    "onnxruntime": (None, "static-int8", "fp16"),
    "tensorrt": (None, "static-int8", "fp16"),
    "litert": (None, "static-int8", "fp16"),
}


@dataclass
class Case:
    """A float checkpoint, its ONNX artifact, and raw examples."""

    first: Build
    folder: Path  # of the artifact
    examples: list[Any]
    work: Path

    def graph(self) -> Any:
        """A fresh copy of the artifact's model."""
        import onnx

        return onnx.load(str(self.folder / "model.onnx"))

    def sound(self) -> Build:
        """The artifact as it is."""
        with warnings.catch_warnings(action="ignore"):
            return builds.open_build(self.folder)


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong. `step` is what check must name; `module` what bisect must name, if anything."""

    name: str
    step: str
    make: Callable[[Case], Build]
    module: str | None = None
    examples: Sequence[Any] | None = None  # that show it, where the case's own do not


# Preprocessing


class Altered(Encoder):
    """An encoder whose tensors, or whose raw example, somebody changes."""

    def __init__(
        self, right: Encoder, tensors: Callable[[Arrays], Arrays] = lambda arrays: arrays,
        example: Callable[[Any], Any] = lambda example: example,
    ) -> None:  # fmt: skip
        self._right, self._tensors, self._example = right, tensors, example
        self.padding = right.padding

    def __call__(self, example: Any) -> Arrays:
        return self._tensors(self._right(self._example(example)))

    def steps(self, example: Any) -> dict[str, Any]:
        return self._right.steps(self._example(example))

    def sample(self, rows: int, length: int | None = None) -> Arrays:
        return self._right.sample(rows, length)

    def axes(self) -> dict[str, list[str | int]]:
        return self._right.axes()


def tensors(change: Callable[[Arrays], Arrays], *, padded: bool = False) -> Callable[[Case], Build]:
    """A build whose tensors are changed on their way to the model; `padded` to a length."""

    def make(case: Case) -> Build:
        sound = case.sound()
        encoder = sound.encoder
        if padded:
            assert sound.lend is not None
            encoder = sound.lend(list(encoder.axes()), LENGTHS)
        return replace(sound, encoder=Altered(encoder, change))

    return make


def raw(change: Callable[[Any], Any]) -> Callable[[Case], Build]:
    """A build whose raw examples are read wrongly."""
    return lambda case: replace(case.sound(), encoder=Altered(case.sound().encoder, example=change))


def settings(**changed: Any) -> Callable[[Case], Build]:
    """A build with other preprocessing of images."""

    def make(case: Case) -> Build:
        sound = case.sound()
        assert isinstance(sound.encoder, ImageEncoder)
        return replace(sound, encoder=ImageEncoder({**sound.encoder.spec, **changed}, sound.encoder.name))

    return make


def tokenizer(
    file: str, change: Callable[[dict[str, Any]], Mapping[str, Any]], **encoding: Any
) -> Callable[[Case], Build]:
    """A build with another tokenizer."""

    def make(case: Case) -> Build:
        folder = Path(tempfile.mkdtemp(dir=case.work)) / "artifact"
        shutil.copytree(case.folder, folder)
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps(dict(change(content))), encoding="utf-8")
        sound = case.sound()
        encoder = sound.task.encoder(folder, encoding, inputs=list(sound.encoder.axes()))
        return replace(sound, encoder=encoder)

    return make


def _shifted_vocabulary(content: dict[str, Any]) -> dict[str, Any]:
    names = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    kept = 1000  # of special tokens and the like
    moved = names[:kept] + names[kept + 1 :] + [names[kept]]
    content["model"]["vocab"] = {name: number for number, name in enumerate(moved)}
    return content


def _to_the_right(arrays: Arrays) -> Arrays:
    count = int(arrays["attention_mask"].sum())
    return {name: np.roll(array, array.shape[1] - count, axis=1) for name, array in arrays.items()}


def _channels(change: Callable[[Any], Any]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {name: np.ascontiguousarray(change(array)) for name, array in arrays.items()}


def _as_if_last(array: Any) -> Any:
    """Channels last in memory, said to be first."""
    return array.transpose(0, 2, 3, 1).reshape(array.shape)


def _sideways(example: Any) -> Any:
    """A picture as it lies in the file, whatever its EXIF says of its orientation."""
    from PIL import Image

    return np.asarray(Image.open(example).convert("RGB"))


def _on_black(example: Any) -> Any:
    """A picture whose transparency is thrown away."""
    from PIL import Image

    return np.asarray(Image.open(example).convert("RGBA"))[:, :, :3]


# Graphs


def graph(change: Callable[[Any], None], *, padded: bool = False) -> Callable[[Case], Build]:
    """A build whose graph is changed."""

    def make(case: Case) -> Build:
        import onnx

        model = case.graph()
        change(model)
        path = Path(tempfile.mkdtemp(dir=case.work)) / "model.onnx"
        onnx.save(model, str(path))
        sound = case.sound()
        found = builds.open_build(path, like=sound)
        if padded:
            assert sound.lend is not None
            found = replace(found, encoder=sound.lend(list(sound.encoder.axes()), LENGTHS))
        return found

    return make


def nodes(model: Any, operators: Sequence[str], module: str) -> list[Any]:
    """The nodes of some operators in a module, whatever the exporter wrapped it in; if it has none itself, those of the
    modules in it."""
    from toolkit.probes import onnx as probe

    own, inner = [], []
    for node, scope in zip(model.graph.node, probe.scopes(model), strict=True):
        name = scope.removeprefix("model.")
        if node.op_type in operators and name == module:
            own.append(node)
        elif node.op_type in operators and name.startswith(f"{module}."):
            inner.append(node)
    if not own and not inner:
        raise ValueError(f"The graph has no {' or '.join(operators)} in {module}.")
    return own or inner


def constant(model: Any, node: Any, rank: int | None = None) -> Any:
    """The weight of a node: its float initializer, of a rank if that is said."""
    for tensor in model.graph.initializer:
        if tensor.name in node.input and tensor.data_type in (1, 7) and rank in (None, len(tensor.dims)):
            return tensor
    raise ValueError(f"{node.op_type} {node.name} has no such constant.")


def weight(operators: Sequence[str], module: str, change: Callable[[Any], Any], rank: int | None = None) -> Any:
    """Change a weight of the first node of some operators in a module."""

    def apply(model: Any) -> None:
        from onnx import numpy_helper

        tensor = constant(model, nodes(model, operators, module)[0], rank)
        values = change(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))

    return apply


def attribute(operators: Sequence[str], module: str, name: str, value: Any) -> Callable[[Any], None]:
    """Set an attribute of the first node of some operators in a module."""

    def apply(model: Any) -> None:
        from onnx import helper

        node = nodes(model, operators, module)[0]
        kept = [each for each in node.attribute if each.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return apply


def operator(operators: Sequence[str], module: str, other: str, keep: int | None = None) -> Callable[[Any], None]:
    """Make the first node of some operators in a module another one, with its first `keep` inputs and no attributes."""

    def apply(model: Any) -> None:
        node = nodes(model, operators, module)[0]
        node.op_type = other
        del node.attribute[:]
        if keep is not None:
            del node.input[keep:]

    return apply


def insert(operators: Sequence[str], module: str, kind: str, value: Any, place: int = 0, **given: Any) -> Any:
    """Put an operator in front of the first node of some operators in a module."""

    def apply(model: Any) -> None:
        from onnx import helper, numpy_helper

        node = nodes(model, operators, module)[0]
        names = [node.input[place]]
        if value is not None:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), "inserted.value"))
            names.append("inserted.value")
        index = list(model.graph.node).index(node)
        model.graph.node.insert(index, helper.make_node(kind, names, ["inserted"], name="inserted", **given))
        node.input[place] = "inserted"

    return apply


def softmax_behind(model: Any) -> None:
    """A softmax behind the output."""
    from onnx import helper

    output = model.graph.output[0]
    model.graph.node.append(helper.make_node("Softmax", [output.name], ["probabilities"], axis=-1))
    output.name = "probabilities"


def narrow_ids(model: Any) -> None:
    """Token ids that pass through 8 bits."""
    from onnx import TensorProto, helper

    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == "input_ids":
                node.input[place] = "wide"
    cast = [("input_ids", "narrow", TensorProto.INT8), ("narrow", "wide", TensorProto.INT64)]
    for source, target, kind in reversed(cast):
        model.graph.node.insert(0, helper.make_node("Cast", [source], [target], to=kind, name=f"cast.{target}"))


def swapped(first: str, second: str) -> Callable[[Any], None]:
    """The weights of two equal layers, each in the other's place."""

    def apply(model: Any) -> None:
        one, other = (constant(model, nodes(model, ("MatMul", "Gemm"), name)[0], 2) for name in (first, second))
        name = one.name, other.name
        content = one.SerializeToString()
        one.CopyFrom(other)
        other.ParseFromString(content)
        one.name, other.name = name

    return apply


def reset_norm(module: str) -> Callable[[Case], Build]:
    """A checkpoint whose norm has the statistics from before training."""

    def make(case: Case) -> Build:
        from safetensors.torch import load_file, save_file

        folder = Path(tempfile.mkdtemp(dir=case.work)) / "checkpoint"
        shutil.copytree(case.first.path, folder)
        tensors_ = load_file(folder / "model.safetensors")
        for name, value in tensors_.items():
            if f"{module}.running_mean".endswith(f".{name}"):  # the network itself is a part of what is called here
                value.zero_()
            if f"{module}.running_var".endswith(f".{name}"):
                value.fill_(1)
        save_file(tensors_, folder / "model.safetensors", metadata={"format": "pt"})
        output = folder.parent / "artifact"
        steps.export(str(folder), str(output), engine="onnxruntime", lengths=[1], allow_code=True)
        return builds.open_build(output)

    return make


def labels_turned(case: Case) -> Build:
    """The first two labels in each other's place."""
    sound = case.sound()
    return replace(sound, labels=[sound.labels[1], sound.labels[0], *sound.labels[2:]])


def text_faults(layer: int) -> list[Fault]:
    """Faults of a BERT classifier; those inside the encoder are in one of its layers."""
    inside = f"bert.encoder.layer.{layer}"
    attention, table = f"{inside}.attention.self", "bert.embeddings"
    dense, wide = f"{inside}.attention.output.dense", f"{inside}.intermediate.dense"
    products = ("MatMul", "Gemm")
    return [
        Fault("capitals and accents stay", "tokenize", tokenizer("tokenizer.json", lambda c: c | {"normalizer": None})),
        Fault("no special tokens", "tokenize", tokenizer("tokenizer.json", lambda c: c | {"post_processor": None})),
        Fault("vocabulary shifted by one", "tokenize", tokenizer("tokenizer.json", _shifted_vocabulary)),
        Fault("texts cut too early", "truncate", tokenizer("tokenizer_config.json", dict, max_length=12)),
        Fault("padding on the left", "inputs", tensors(_to_the_right, padded=True)),
        Fault(
            "padding not masked", "inputs",
            tensors(lambda a: {**a, "attention_mask": np.ones_like(a["attention_mask"])}, padded=True),
        ),
        Fault(
            "token types of a second sentence", "inputs",
            tensors(lambda a: {**a, "token_type_ids": np.ones_like(a["token_type_ids"])}),
        ),
        Fault("labels swapped", "labels", labels_turned),
        Fault("softmax twice", "model", graph(softmax_behind)),
        Fault("ids through 8 bits", "model", graph(narrow_ids), f"{table}.word_embeddings"),
        Fault(
            "embedding table off by one", "model",
            graph(weight(("Gather",), f"{table}.word_embeddings", lambda w: np.roll(w, 1, axis=0), 2)),
            f"{table}.word_embeddings",
        ),
        Fault(
            "positions off by one", "model",
            graph(weight(("Gather",), f"{table}.position_embeddings", lambda w: np.roll(w, -1, axis=0), 2)),
            f"{table}.position_embeddings",
        ),
        Fault(
            "token types left out", "model",
            graph(weight(("Gather",), f"{table}.token_type_embeddings", lambda w: 0 * w, 2)),
            f"{table}.token_type_embeddings",
        ),
        Fault("weight transposed", "model", graph(weight(products, dense, lambda w: w.T, 2)), dense),
        Fault("weight never loaded", "model", graph(weight(products, dense, lambda w: 0 * w, 2)), dense),
        Fault("layers swapped", "model", graph(swapped(f"bert.encoder.layer.{layer - 1}.output.dense",
                                                       f"{inside}.output.dense")),
              f"bert.encoder.layer.{layer - 1}.output.dense"),
        Fault("bias dropped", "model", graph(weight(("Add",), wide, lambda b: 0 * b, 1)), wide),
        Fault("softmax over the wrong axis", "model", graph(attribute(("Softmax",), attention, "axis", 1)), attention),
        Fault(
            "attention not scaled", "model",
            graph(insert(("Softmax",), attention, "Mul", 32**0.5)), attention,
        ),
        Fault(
            "GELU is a ReLU", "model", graph(operator(("Gelu",), f"{inside}.intermediate", "Relu")),
            f"{inside}.intermediate.intermediate_act_fn",
        ),
        Fault(
            "epsilon of a norm", "model",
            graph(attribute(("LayerNormalization",), f"{inside}.output.LayerNorm", "epsilon", 0.1)),
            f"{inside}.output.LayerNorm",
        ),
        Fault(
            "residual dropped", "model", graph(operator(("Add",), f"{inside}.attention.output", "Identity", keep=1)),
            f"{inside}.attention.output",
        ),
    ]  # fmt: skip


def image_faults(first: Build, norm: str, last: str, pictures: Mapping[str, Any]) -> list[Fault]:
    """Faults of a network of convolutions: in the depthwise one into which exporters fold `norm`, and in the linear
    layer `last`. `pictures` are a rotated and a transparent one."""
    assert isinstance(first.encoder, ImageEncoder)
    height, width = first.encoder.size
    larger = {"height": height * 8 // 7, "width": width * 8 // 7}
    return [
        Fault("another mean", "inputs", settings(mean=[0.5] * 3)),
        Fault("another std", "inputs", settings(std=[0.5] * 3)),
        Fault("values from 0 to 255", "inputs", settings(scale=1.0)),
        Fault("BGR instead of RGB", "inputs", tensors(_channels(lambda a: a[:, ::-1]))),
        Fault("channels last in memory", "inputs", tensors(_channels(_as_if_last))),
        Fault("another resize filter", "resize", settings(resample="nearest")),
        Fault("cropped instead of resized", "resize", settings(resize=larger, crop={"height": height, "width": width})),
        Fault("EXIF orientation ignored", "decode", raw(_sideways), examples=[pictures["rotated"]]),
        Fault("transparency thrown away", "decode", raw(_on_black), examples=[pictures["transparent"]]),
        Fault("colours from one channel", "decode", raw(lambda e: decode(e)[:, :, :1].repeat(3, axis=2)),
              examples=[pictures["coloured"]]),
        Fault("labels swapped", "labels", labels_turned),
        Fault("softmax twice", "model", graph(softmax_behind)),
        Fault("stale running statistics", "model", reset_norm(norm), norm),
        Fault("bias dropped", "model", graph(weight(("Conv",), norm, lambda b: 0 * b, 1)), norm),
        Fault("kernel transposed", "model", graph(weight(("Conv",), norm, lambda w: w.swapaxes(2, 3), 4)), norm),
        Fault("channels rolled by one", "model", graph(weight(("Conv",), norm, lambda w: np.roll(w, 1, 0), 4)), norm),
        Fault("padding on one side", "model", graph(attribute(("Conv",), norm, "pads", [0, 0, 2, 2])), norm),
        Fault("weights in one scale for all channels", "model",
              graph(weight(("Conv",), norm, lambda w: _one_scale(w), 4)), norm),
        Fault("last weight scaled", "model", graph(weight(("Gemm", "MatMul"), last, lambda w: 1.1 * w, 2)), last),
    ]  # fmt: skip


def _one_scale(values: Any) -> Any:
    """Weights rounded to four bits by one scale, as if none of the channels were smaller than the rest."""
    scale = np.abs(values).max() / 7
    return (np.round(values / scale) * scale).astype(np.float32)


@dataclass
class Outcome:
    """What the tools said of one fault."""

    fault: Fault
    step: str | None
    what: str
    module: str | None
    holds: list[str]

    @property
    def caught(self) -> bool:
        if self.step != self.fault.step:
            return False
        wanted = self.fault.module
        if wanted is None:
            return True
        return self.module is not None and (
            self.module == wanted or self.module.startswith(f"{wanted}.") or wanted in self.holds
        )


def look(case: Case, fault: Fault) -> Outcome:
    """Run the tools on one fault."""
    second = fault.make(case)
    examples = list(fault.examples or case.examples)
    found = checks.check(case.first, second, examples)
    outcome = Outcome(
        fault, found.first.name if found.first else None, found.first.what if found.first else "", None, []
    )
    if fault.module is not None:
        inputs = builds.inputs_for(case.first, second, examples[:4])
        row = bisection.bisect(case.first.probe(), second.probe(), inputs, second.precision).first
        if row is not None:
            outcome.module, outcome.holds = row.module, row.holds
    second.close()
    return outcome


def alarms(case: Case, made: Mapping[str, Path]) -> dict[str, str | None]:
    """What the tools say of sound builds: by name the step or the module, None if nothing."""
    said: dict[str, str | None] = {}
    for name, folder in made.items():
        with warnings.catch_warnings(action="ignore"):
            second = builds.open_build(folder)
        found = checks.check(case.first, second, case.examples)
        inputs = builds.inputs_for(case.first, second, case.examples[:4])
        row = bisection.bisect(case.first.probe(), second.probe(), inputs, second.precision).first
        said[name] = f"step {found.first.name}: {found.first.what}" if found.first else row.module if row else None
        second.close()
    return said


def sound_builds(
    checkpoint: Path, which: Mapping[str, Sequence[str | None]], work: Path, options: Mapping[str, Any]
) -> dict[str, Path]:
    """Artifacts of a checkpoint by engine and method."""
    made = {}
    for engine, methods in which.items():
        float_folder = work / engine
        steps.export(str(checkpoint), str(float_folder), engine=engine, lengths=LENGTHS, allow_code=True)
        made[f"{engine} fp32"] = float_folder
        for method in filter(None, methods):
            made[f"{engine} {method}"] = work / f"{engine}-{method}"
            given = {"model": str(checkpoint), **options} if method == "static-int8" else {}
            parameters = {"calibration": "mse"} if method == "static-int8" else {}  # as `convert` does
            output = str(made[f"{engine} {method}"])
            steps.quantize(str(float_folder), output, method=method, options=given, parameters=parameters)
    return made


def show(name: str, outcomes: Sequence[Outcome]) -> None:
    """Print a table."""
    print(f"{name:38} {'step':9} {'module':52} caught")
    for each in outcomes:
        module = each.module or ("" if each.fault.module is None else "-")
        print(f"{each.fault.name:38} {each.step or '-':9} {module:52} {'yes' if each.caught else 'NO'}", flush=True)


def pictures_in(folder: Path) -> dict[str, Path]:
    """A picture that EXIF says to turn, and one that is transparent in part."""
    from PIL import Image

    generator = np.random.default_rng(0)
    values = generator.integers(0, 255, (30, 50, 4), dtype=np.uint8)
    values[:, :25, 3], values[:, 25:, 3] = 255, 0
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(values[:, :, :3]).save(folder / "rotated.jpg", exif=exif)
    Image.fromarray(values).save(folder / "transparent.png")
    Image.fromarray(values[:, :, :3]).save(folder / "coloured.png")
    return {
        "coloured": folder / "coloured.png",
        "rotated": folder / "rotated.jpg",
        "transparent": folder / "transparent.png",
    }


def measured(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Both models' faults and alarms."""
    rows: list[dict[str, Any]] = []
    said: dict[str, str | None] = {}
    for name, checkpoint, data, which in (
        ("text", arguments.text, arguments.reviews, TEXT_BUILDS),
        ("image", arguments.image, arguments.images, IMAGE_BUILDS),
    ):
        (work / name).mkdir()
        first = builds.open_build(checkpoint, allow_code=True)
        examples = builds.examples_for(first, first, data, None, arguments.examples)
        options = {"data": str(data), "allow_code": True}
        made = sound_builds(checkpoint, which, work / name, options)
        case = Case(first, made["tensorrt fp32"], examples, work / name)
        if name == "text":
            faults = text_faults(layer=2)
        else:
            faults = image_faults(first, "net.features.6.conv.1.1", "net.classifier.1", pictures_in(work))
        outcomes = [look(case, fault) for fault in faults]
        show(name, outcomes)
        rows += [
            {"model": name, "fault": o.fault.name, "expected": [o.fault.step, o.fault.module],
             "step": o.step, "module": o.module, "holds": o.holds, "what": o.what, "caught": o.caught}
            for o in outcomes
        ]  # fmt: skip
        found = alarms(case, made)
        for build, alarm in found.items():
            print(f"sound: {name} {build:30} {alarm or 'no alarm'}", flush=True)
        said |= {f"{name} {build}": alarm for build, alarm in found.items()}
    caught = sum(bool(row["caught"]) for row in rows)
    print(f"{caught} of {len(rows)} faults caught, {sum(map(bool, said.values()))} alarms in {len(said)} sound builds")
    return {"faults": rows, "sound": said, "caught": caught}


def main() -> None:
    """Make the faults, look, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--reviews", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "faults.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        record = {
            "command": "python benchmarks/faults.py --text … --image … --reviews … --images …",
            "kind": "measured",
            "versions": library_versions(("torch", "transformers", "onnxruntime", "litert-torch")),
            **measured(arguments, work),
        }
    write_json(arguments.output, record)


if __name__ == "__main__":
    main()
