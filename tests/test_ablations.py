"""config/ablations.yaml is the paper's ablations on small images: same rows, same settings."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ijepa import config
from ijepa.masking import sampler

FOLDER = Path(__file__).parents[1] / "config"
PAPER, MINI = (yaml.safe_load((FOLDER / f"{n}.yaml").read_text()) for n in ("paper", "ablations"))
IN_PAPER = {table["name"]: table for table in PAPER["tables"]}
VARIED = ("strategy", "target_ratio", "num_targets", "target_scale", "context_scale")

pytestmark = pytest.mark.usefixtures("real_register")


def parsed(benchmark: dict[str, Any], name: str) -> Any:
    run = next(run for run in benchmark["runs"] if run["name"] == name)
    raw = {"dataset": benchmark["dataset"], "vit": benchmark.get("vit"), **run}
    return config.parse_run(
        {key: value for key, value in raw.items() if key not in ("name", "gpus")}
    )


@pytest.mark.parametrize("table", MINI["tables"], ids=lambda table: table["name"])
def test_a_table_has_the_rows_of_the_papers_and_the_untrained_network(
    table: dict[str, Any],
) -> None:
    *rows, control = table["runs"]
    assert control == "random_init"
    in_papers = list(IN_PAPER[table["name"]]["runs"])
    deepest = parsed(PAPER, in_papers[-1]).recipe.predictor_depth
    for name, in_paper in zip(rows, in_papers, strict=True):
        mini, paper = parsed(MINI, name).recipe, parsed(PAPER, in_paper).recipe
        for setting in VARIED:
            assert getattr(mini.masking, setting) == getattr(paper.masking, setting), name
        assert mini.targets == paper.targets, name
        assert mini.predictor_depth / 2 == paper.predictor_depth / deepest, name


def test_every_run_is_in_a_table_and_no_two_are_the_same() -> None:
    names = [run["name"] for run in MINI["runs"]]
    assert set(names) | {"random_init"} == {
        run for table in MINI["tables"] for run in table["runs"]
    }
    assert len({parsed(MINI, name).identity() for name in names}) == len(names)


@pytest.mark.parametrize("name", [run["name"] for run in MINI["runs"]])
def test_the_masks_of_a_run_can_be_drawn_on_its_small_grid(name: str) -> None:
    """Predicted patches are hidden, except in one image of thousands with nothing else left."""
    run = parsed(MINI, name)
    masking, grid = run.recipe.masking, run.vit.grid
    mask_sampler, random, overlapping = sampler(masking, grid), torch.Generator().manual_seed(0), 0
    for _ in range(50):
        masks = mask_sampler.sample(run.recipe.optim.batch_size, random)
        assert masks.context_GK.shape[1] > masking.min_keep
        seen = torch.zeros(len(masks.context_GK), grid[0] * grid[1], dtype=torch.bool)
        seen.scatter_(1, masks.context_GK, True)
        overlapping += int(seen.gather(1, masks.targets_GMT.flatten(1)).any(1).sum())
    assert overlapping <= 1
