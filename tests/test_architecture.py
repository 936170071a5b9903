"""Models cut to a smaller shape: what stays answers as before, and the result is a checkpoint like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.small_inputs import ENCODERS, random_encoder
from toolkit import architecture, importance
from toolkit.architecture import Cut
from toolkit.errors import InputError


@pytest.fixture(params=ENCODERS)
def model(request: pytest.FixtureRequest) -> Any:
    return random_encoder(request.param)


def answer(model: Any, ids: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.fixture
def ids() -> Any:
    import torch

    return torch.randint(5, 200, (3, 20), generator=torch.Generator().manual_seed(0))


def test_nothing_cut_answers_the_same(model: Any, ids: Any) -> None:
    same = architecture.cut(model, Cut())
    assert same is not model
    assert answer(same, ids) == pytest.approx(answer(model, ids).numpy(), abs=1e-6)


def test_units_that_nothing_reads_can_go(model: Any, ids: Any) -> None:
    import torch

    readers = importance._readers(model)["ffn"]
    keep = [sorted({*range(0, 96, 2)}) for _ in readers]
    with torch.no_grad():
        for modules in readers.values():
            modules[0].weight[:, 1::2] = 0
    before = answer(model, ids)
    smaller = architecture.cut(model, Cut(ffn=keep))
    assert architecture.shape(smaller.config)["ffn"] == 48
    assert answer(smaller, ids) == pytest.approx(before.numpy(), abs=1e-5)


def test_layers_that_do_nothing_can_go(model: Any, ids: Any) -> None:
    """The first two layers of the smaller model are the first and the last of the larger one."""
    smaller = architecture.cut(model, Cut(layers=[0, 3]))
    assert architecture.shape(smaller.config)["layers"] == 2
    seen: dict[str, list[Any]] = {}
    for name, one, places in (("large", model, (0, 3)), ("small", smaller, (0, 1))):
        layers = importance._readers(one)["ffn"]
        seen[name] = [layers[place][0].weight.detach().numpy() for place in places]
    for large, small in zip(seen["large"], seen["small"], strict=True):
        assert (large == small).all()


def test_tokens_move_with_their_embeddings(model: Any, ids: Any) -> None:
    import torch

    kept = sorted({0, 1, 2, *ids.unique().tolist()})
    smaller = architecture.cut(model, Cut(vocabulary=kept))
    moved = torch.tensor([[kept.index(index) for index in row] for row in ids.tolist()])
    assert architecture.shape(smaller.config)["vocabulary"] == len(kept)
    assert answer(smaller, moved) == pytest.approx(answer(model, ids).numpy(), abs=1e-6)
    assert smaller.config.pad_token_id == kept.index(model.config.pad_token_id)


def test_positions_end_at_the_longest_input(model: Any, ids: Any) -> None:
    smaller = architecture.cut(model, Cut(positions=20))
    assert answer(smaller, ids) == pytest.approx(answer(model, ids).numpy(), abs=1e-6)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())


def test_heads_go_with_their_width(model: Any, ids: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    wanted = Cut(heads=[[0, 2]] * 4, width=list(range(0, 64, 2)))
    smaller = architecture.cut(model, wanted)
    assert {name: architecture.shape(smaller.config)[name] for name in ("heads", "width")} == {"heads": 2, "width": 32}
    smaller.save_pretrained(tmp_path)
    loaded, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert answer(loaded, ids) == pytest.approx(answer(smaller, ids).numpy(), abs=1e-6)


def test_impossible_cuts_are_refused(model: Any) -> None:
    with pytest.raises(InputError, match="go with a width of 32, not 64"):
        architecture.cut(model, Cut(heads=[[0, 1]] * 4))
    with pytest.raises(InputError, match="has 4 layers"):
        architecture.cut(model, Cut(layers=[0, 4]))
    with pytest.raises(InputError, match="the same number of ffn"):
        architecture.cut(model, Cut(ffn=[[0, 1], [0], [0, 1], [0, 1]]))
    model.config.model_type = "gpt2"
    with pytest.raises(InputError, match="of the type 'gpt2' cannot be made smaller; known: bert"):
        architecture.cut(model, Cut())


@pytest.mark.parametrize("method", ["taylor", "fisher", "magnitude"])
def test_parts_that_matter_are_found(model: Any, ids: Any, method: importance.Method) -> None:
    """Units, heads and channels whose readers are silenced get no importance; the others do."""
    import torch

    with torch.no_grad():
        readers = importance._readers(model)
        for modules in readers["ffn"].values():
            modules[0].weight[:, :10] = 0
        for modules in readers["heads"].values():
            modules[0].weight[:, 16:32] = 0  # the second head
        for modules in readers["width"].values():
            for module in modules:
                module.weight[:, 7] = 0
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 2])}]
    found = importance.measure(model, method, batches, lambda model, batch: model(**batch).loss)
    assert found.ffn.shape == (4, 96) and found.heads.shape == (4, 4) and found.width.shape == (64,)
    assert (found.ffn[:, :10] == 0).all() and (found.ffn[:, 10:] > 0).mean() > 0.9
    assert (found.heads[:, 1] == 0).all() and (found.heads[:, [0, 2, 3]] > 0).all()
    assert found.width[7] == 0 and (np_without(found.width, 7) > 0).all()
    assert 1 not in importance.best(found.heads[0], 3)
    assert all(parameter.grad is None for parameter in model.parameters())


def np_without(array: Any, index: int) -> Any:
    import numpy as np

    return np.delete(array, index)


def test_sizes_are_rounded_to_what_kernels_work_on() -> None:
    assert importance.rounded(1536, 0.5, 32) == 768
    assert importance.rounded(1536, 0.33, 32) == 1024
    assert importance.rounded(1536, 0.999, 32) == 32
    assert importance.rounded(100, 0.01, 32) == 96
    assert importance.rounded(20, 0.0, 32) == 20


def test_layers_are_spread_evenly() -> None:
    assert architecture.evenly(6, 3) == [0, 2, 5]
    assert architecture.evenly(12, 4) == [0, 4, 7, 11]
    assert architecture.evenly(6, 1) == [5]
    assert architecture.evenly(6, 6) == list(range(6))
    assert [architecture.matching(layer, 3, 6) for layer in range(4)] == [0, 2, 4, 6]
    for count in (0, 7):
        with pytest.raises(InputError, match=f"A student of {count} layers"):
            architecture.evenly(6, count)
