"""A model that int8 makes slower: the speed gate must refuse the build, with the reason.

    python benchmarks/slower_int8.py [--runs 5]

A BERT of eight layers that are 8 wide, with random weights from a seed: its matrices are so small that quantizing the
activations takes longer than int8 arithmetic saves. It is converted several times for this CPU, with ONNX Runtime only.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

import toolkit
from toolkit import data as tables
from toolkit import demo
from toolkit.devices import local
from toolkit.storage import write_json

LABELS = ("negative", "positive")
SENTENCES = 300


def tiny_model(folder: Path) -> Path:
    """The checkpoint."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=8, num_hidden_layers=8, num_attention_heads=2, intermediate_size=32,
        id2label=dict(enumerate(LABELS)), label2id={name: index for index, name in enumerate(LABELS)},
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    shutil.copy(demo.find().model / "tokenizer.json", folder)
    return folder


def one_engine(path: Path) -> Path:
    """A profile of this machine with ONNX Runtime alone."""
    profile = local.as_target().model_dump(mode="json", exclude_none=True)
    profile |= {"name": "one-engine", "engines": [{"name": "onnxruntime", "precisions": ["fp32", "int8"]}]}
    path.write_text(yaml.safe_dump(profile), encoding="utf-8")
    return path


def sentences(path: Path) -> Path:
    """Real sentences of the demo, as a CSV."""
    found = demo.find()
    rows = tables.where(tables.read_rows(found.data), found.data, found.where)[:: 8530 // SENTENCES]
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *((row["text"], row["label"]) for row in rows)])
    return path


def main() -> None:
    """Convert, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "slower_int8.json")
    arguments = parser.parse_args()

    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        model, target, data = tiny_model(folder / "tiny"), one_engine(folder / "t.yaml"), sentences(folder / "s.csv")
        for number in range(arguments.runs):
            bundle = toolkit.convert(
                model, target=str(target), data=str(data), min_score="0", output=str(folder / f"bundle-{number}"),
                cache_dir=str(folder / f"cache-{number}"),
            )  # fmt: skip
            int8 = next(each for each in bundle.summary["candidates"] if each["precision"] == "int8")
            against = bundle.summary["against_float_sibling"]["onnxruntime int8"]
            runs.append({"chosen": bundle.summary["chosen"], "int8": int8["outcome"], **against})
            print(f"{bundle.summary['chosen']} chosen; int8: {int8['outcome']}", flush=True)
    refused = sum(run["int8"].startswith("refused by speed") for run in runs)
    print(f"int8 refused for its speed in {refused} of {len(runs)} runs")
    record = {
        "command": f"python benchmarks/slower_int8.py --runs {arguments.runs}",
        "kind": "measured",
        "device": local.describe(),
        "runs": runs,
        "refused": refused,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output, record)


if __name__ == "__main__":
    main()
