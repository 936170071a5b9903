"""Image classification: one image, one label."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from toolkit import data
from toolkit.engines import Arrays
from toolkit.errors import InputError
from toolkit.runtime import image
from toolkit.runtime.encoder import SPEC, Encoder
from toolkit.runtime.image import ImageEncoder
from toolkit.storage import read_json, sha256_file, sha256_json, sha256_path, write_json
from toolkit.tasks import image_augmentation, image_sources
from toolkit.tasks.augmentation import Soft
from toolkit.tasks.description import TensorDescription
from toolkit.tasks.task import Example, Preparation, Task, classification_metrics, split

_PROCESSOR = "preprocessor_config.json"  # as transformers writes it
# What a transformers processor says that changes nothing here, or is said in another way.
_KNOWN_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


class ImagePreparation(Preparation):
    """`image_column`, `label_column`: the columns, where they are not found by name; `skip_corrupt`: leave out what
    cannot be decoded instead of refusing the data. The rest is the preprocessing of a network that brings none."""

    image_column: str | None = None
    label_column: str | None = None
    skip_corrupt: bool = False
    size: int | None = Field(None, ge=1, le=16384, description="Height and width of what the model sees")
    channels: int | None = None
    resample: str | None = None
    mean: float | list[float] | None = None
    std: float | list[float] | None = None


class ImageClassification(Task):
    """One image, one label."""

    NAME = "image-classification"
    SCORE_NAME = "accuracy"
    MODEL_CLASS = "AutoModelForImageClassification"
    HEAD = "ForImageClassification"
    FILES = (SPEC, _PROCESSOR)
    INPUT_NAMES = (image.NAME,)
    LAZY = True
    Preparation = ImagePreparation
    Augmentation = image_augmentation.ImageAugmentation

    # Data

    def check_data(self, path: Path) -> None:
        if not path.exists():
            raise InputError(f"Data {path} does not exist.")
        if path.is_dir():
            if not any(path.iterdir()):
                raise InputError(f"The folder {path} is empty.")
        elif image_sources.is_idx(path):
            image_sources.labels_beside(path)
        else:
            data.check_readable(path)

    def data_sha256(self, preparation: Mapping[str, Any]) -> str:
        path = Path(preparation["data"])
        if path.is_dir():
            return sha256_path(path)
        if image_sources.is_idx(path):
            return sha256_json([sha256_file(path), sha256_file(image_sources.labels_beside(path))])
        named = (found.path for found in image_sources.find(path, preparation))
        files = {str(file): file for file in named if file is not None and file.is_file()}
        return sha256_json([sha256_file(path), {name: sha256_file(file) for name, file in sorted(files.items())}])

    def prepare(self, source: Path, output: Path, parameters: ImagePreparation, context: Any) -> dict[str, Any]:
        path = Path(parameters.data)
        spec = _spec(source, parameters)
        encoder = ImageEncoder(spec)
        found = list(image_sources.find(path, parameters.model_dump()))
        if not found:
            raise InputError(f"{path} holds no image.")
        dropped = data.Dropped()
        kept = image_sources.usable(found, parameters.skip_corrupt, dropped, path, context)
        names, mapping = data.label_indices(
            {each.label for each in kept}, path, known=parameters.known_labels, wanted=parameters.label_names
        )
        examples = [
            Example(image_sources.store(each, output, number), mapping[each.label]) for number, each in enumerate(kept)
        ]
        report = {
            "rows": len(found),
            "used": len(examples),
            "dropped": dropped.as_dict(),
            "labels": {name: sum(e.label == i for e in examples) for i, name in enumerate(names)},
            "encoding": encoder.spec,
            "lengths": None,
        }
        return self.write_prepared(output, split(examples, names, parameters, context.seed), names, report)

    def read_examples(self, folder: Path, split: str) -> list[Example]:
        return [Example(str(folder / each.input), each.label) for each in super().read_examples(folder, split)]

    def unlabeled(self, path: Path, column: str | None) -> Iterator[Any]:
        if path.is_dir():
            yield from (str(each) for each in sorted(path.rglob("*")) if each.suffix.lower() in image_sources.SUFFIXES)
        elif path.suffix.lower() in image_sources.SUFFIXES:
            yield str(path)
        else:
            rows = data.read_rows(path)
            name = data.find_column(path, rows, column, image_sources.COLUMNS, "image", "--unlabeled-column")
            yield from (str((path.parent / str(row[name])).resolve()) for row in rows)

    def examples_of(self, path: Path, most: int) -> list[Any]:
        return [{"path": each} for each in super().examples_of(path, most)]

    # Checkpoints

    def is_convolutional(self, checkpoint: Any) -> bool:
        return not checkpoint.tensors or super().is_convolutional(checkpoint)

    def offers(self, encoding: Mapping[str, Any]) -> dict[str, Any]:
        spec = image.settings(encoding)
        return {"channels": spec["channels"]}

    def copy_files(self, source: Path, output: Path, encoding: Mapping[str, Any]) -> None:
        super().copy_files(source, output, encoding)
        write_json(output / SPEC, _known_spec(source) or image.settings(encoding))

    # Inputs

    def encoder(
        self,
        folder: Path,
        encoding: Mapping[str, Any],
        *,
        inputs: Sequence[str] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Encoder:
        spec = encoding or _known_spec(folder)
        if spec is None:
            raise InputError(f"{folder} says nothing of how images are preprocessed.")
        return ImageEncoder(spec, inputs[0] if inputs else image.NAME)

    def describe_inputs(self, folder: Path, encoding: Mapping[str, Any]) -> dict[str, TensorDescription]:
        encoder = self.encoder(folder, encoding)
        assert isinstance(encoder, ImageEncoder)  # noqa: S101 - this task's own
        spec = encoder.spec
        ends = [[(value - m) / s for m, s in zip(spec["mean"], spec["std"], strict=True)]
                for value in (0.0, 255 * spec["scale"])]  # fmt: skip
        described = TensorDescription(
            name="image",
            description="A picture, normalized.",
            channels=spec["channels"],
            mean=tuple(each / spec["scale"] for each in spec["mean"]),
            std=tuple(each / spec["scale"] for each in spec["std"]),
            low=tuple(ends[0]),
            high=tuple(ends[1]),
        )
        return {encoder.name: described}

    def preprocessing(self, folder: Path, encoding: Mapping[str, Any]) -> dict[str, Any]:
        return {"kind": "image", "path": SPEC}

    def record(self, given: Any, folder: Path, name: str) -> Any:
        suffix = Path(given).suffix.lower()
        shutil.copy(given, folder / f"{name}{suffix}")
        return {"file": f"{name}{suffix}"}

    # Augmentation

    def augmented(
        self, example: Example, encoder: Encoder, settings: Any, generator: np.random.Generator, names: Sequence[str]
    ) -> tuple[Arrays, NDArray[np.int64]]:
        assert isinstance(encoder, ImageEncoder)  # noqa: S101 - this task's own
        pixels = encoder.seen(example.input)
        pixels = image_augmentation.changed(pixels, settings, encoder.spec["resample"], generator)
        return {encoder.name: encoder.normalized(pixels)[None]}, self.truth([example])

    def mixed(
        self,
        arrays: Arrays,
        labels: NDArray[np.int64],
        settings: Any,
        generator: np.random.Generator,
        names: Sequence[str],
    ) -> tuple[Arrays, NDArray[np.int64] | Soft]:
        return image_augmentation.mixed(arrays, labels, settings, generator, len(names))

    # Answers

    def metrics(self, answers: NDArray[Any], examples: Sequence[Example], names: Sequence[str]) -> dict[str, Any]:
        return classification_metrics(answers, self.truth(examples), names)

    # Calibration

    def sizes(self, inputs: Sequence[Any], folder: Path, encoding: Mapping[str, Any]) -> list[int]:
        return [Path(each).stat().st_size for each in inputs]

    def identity(self, given: Any) -> Any:
        return sha256_file(Path(given))

    def doubts(self, given: Sequence[Any], real: Sequence[Any], folder: Path, encoding: Mapping[str, Any]) -> list[str]:
        encoder = ImageEncoder(encoding or _known_spec(folder) or {})
        likeness = [float(np.mean([smoothness(encoder.seen(each)) for each in part[:100]])) for part in (given, real)]
        if likeness[0] < 0.5 * likeness[1]:
            raise InputError(
                f"The calibration images look like random data: neighbouring pixels correlate by {likeness[0]:.2f}, in "
                f"the training images by {likeness[1]:.2f}. Ranges taken from them would hold for nothing; give images "
                "that the model will meet."
            )
        return []


def smoothness(pixels: NDArray[np.uint8]) -> float:
    """How much neighbouring pixels have in common: the correlation of each with the one to its right; 1 if all are the
    same."""
    values = pixels.astype(np.float64)
    left, right = values[:, :-1].ravel(), values[:, 1:].ravel()
    if left.size == 0 or left.std() == 0 or right.std() == 0:
        return 1.0
    return float(np.corrcoef(left, right)[0, 1])


# Preprocessing


def _known_spec(folder: Path) -> dict[str, Any] | None:
    """The preprocessing that a checkpoint or artifact folder brings; None if it brings none. Raises InputError."""
    for name, understood in ((SPEC, image.settings), (_PROCESSOR, _from_transformers)):
        path = folder / name
        if path.is_file():
            return dict(understood(read_json(path)))
    return None


def _from_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """A transformers processor's config as our settings. Raises InputError for steps that we do not know."""
    strange = [key for key, value in config.items() if key.startswith("do_") and value and key not in _KNOWN_STEPS]
    if strange or config.get("crop_pct"):
        raise InputError(
            f"{_PROCESSOR}: the image processor {config.get('image_processor_type')} does something that is not known "
            f"here ({', '.join(strange) or 'crop_pct'}). Write the preprocessing as {SPEC} beside the weights."
        )
    spec: dict[str, Any] = {"channels": 3, "scale": 1.0}
    if config.get("do_resize", True) and config.get("size"):
        spec["resize"] = _size(config["size"])
    if config.get("do_center_crop") and (config.get("crop_size") or config.get("size")):
        crop = _size(config.get("crop_size") or config["size"])
        spec["crop"] = {"height": crop["shortest_edge"], "width": crop["shortest_edge"]} if len(crop) == 1 else crop
    spec["resample"] = image.RESAMPLING[int(config.get("resample", 2))]
    if config.get("do_rescale", True):
        spec["scale"] = float(config.get("rescale_factor", 1 / 255))
    if config.get("do_normalize", True):
        spec["mean"] = config.get("image_mean", 0.0)
        spec["std"] = config.get("image_std", 1.0)
    return image.settings(spec)


def _size(size: Any) -> dict[str, int]:
    if isinstance(size, Mapping):
        return {key: int(value) for key, value in size.items()}
    return {"height": int(size), "width": int(size)}


def _spec(source: Path, parameters: ImagePreparation) -> dict[str, Any]:
    """The preprocessing: the checkpoint's own, or what the options say of it. Raises InputError."""
    known = _known_spec(source)
    said = {
        name: value for name in ("size", "channels", "resample", "mean", "std")
        if (value := getattr(parameters, name)) is not None
    }  # fmt: skip
    if known is not None and not said:
        return known
    if known is None and "size" not in said:
        raise InputError(
            f"The model brings no {_PROCESSOR} and no {SPEC}: say how large the images are that it sees with "
            "--option size=224, and if need be channels, mean, std and resample."
        )
    spec: dict[str, Any] = dict(known or {})
    if "channels" in said and known is not None and said["channels"] != known["channels"]:
        raise InputError(f"The model takes {known['channels']} channels, not {said['channels']}.")
    if "size" in said:
        size = {"height": said.pop("size")}
        size["width"] = size["height"]
        spec |= {"resize": size, "crop": None}
    spec |= said
    if known is None and spec.get("channels", 3) == 3:
        spec = {**_IMAGENET, **spec}
    return image.settings(spec)


TASK = ImageClassification()
