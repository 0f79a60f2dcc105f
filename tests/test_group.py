"""One process makes all evaluations of the same features; each result is still its own."""

import json
from pathlib import Path
from typing import Any

import pytest

from evals.protocols import knn
from evals.run import Item, evaluate_group
from evals.subject import Subject
from ijepa.errors import UserError

KNN = Item("knn", "knn", config={"num_neighbours": 5})
STATISTICS = Item("statistics", "feature_statistics")


def group(items: list[Item], data: Path, folder: Path) -> None:
    """The evaluations of raw pixels."""
    evaluate_group(
        items,
        None,
        data,
        folder / "features" / "about.json",
        folder / "evaluations",
        folder / "work",
        {"train": 100, "test": 20},
    )


def results(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (folder / "evaluations").glob("*.json")}


def test_a_changed_evaluation_is_made_again_alone(data: Path, tmp_path: Path) -> None:
    group([KNN, STATISTICS], data, tmp_path)
    before = results(tmp_path)
    assert before.keys() == {"knn", "statistics"}
    group([KNN, STATISTICS], data, tmp_path)
    assert results(tmp_path) == before  # nothing was made again: results have their times

    group([Item("knn", "knn", config={"num_neighbours": 7}), STATISTICS], data, tmp_path)
    after = results(tmp_path)
    assert after["statistics"] == before["statistics"]
    assert json.loads(after["knn"])["protocol"]["num_neighbours"] == 7


@pytest.mark.parametrize("left", [b"", b'{"value": 1'])
def test_a_torn_result_is_made_again_alone(left: bytes, data: Path, tmp_path: Path) -> None:
    group([KNN, STATISTICS], data, tmp_path)
    before = results(tmp_path)
    (tmp_path / "evaluations" / "knn.json").write_bytes(left)
    group([KNN, STATISTICS], data, tmp_path)
    after = results(tmp_path)
    assert after["statistics"] == before["statistics"]
    assert json.loads(after["knn"])["value"] == json.loads(before["knn"])["value"]


@pytest.mark.parametrize("fault", [UserError("of a user"), RuntimeError("of this software")])
def test_the_failure_of_one_leaves_the_others(
    fault: Exception, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_config: Any, _subject: Subject) -> Any:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(knn, "evaluate", failing)
        with pytest.raises(UserError, match=f"1 of 2 evaluations failed, .*: knn: {fault}"):
            group([KNN, STATISTICS], data, tmp_path)
    before = results(tmp_path)
    assert before.keys() == {"statistics"}
    group([KNN, STATISTICS], data, tmp_path)
    assert results(tmp_path)["statistics"] == before["statistics"]


def test_an_evaluation_that_is_impossible_is_refused_before_features_are_extracted(
    data: Path, tmp_path: Path
) -> None:
    impossible = Item("probe", "linear_probe", config={"batch_size": 91})
    with pytest.raises(UserError, match=r"evaluations\.probe\.batch_size is 91, but only 90"):
        group([KNN, impossible], data, tmp_path)
    assert not any(tmp_path.iterdir())


def test_features_that_are_there_need_no_network(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed evaluation of a ViT-H does not load its weights."""
    group([KNN], data, tmp_path)

    def loaded(*_: object) -> None:
        raise AssertionError("the network was loaded")

    monkeypatch.setattr("evals.features._loaded", loaded)
    group([KNN, STATISTICS], data, tmp_path)
    assert results(tmp_path).keys() == {"knn", "statistics"}
