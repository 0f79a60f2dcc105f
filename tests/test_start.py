"""A run starts from other weights: all of a run's, its towers, its student, or an encoder."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ijepa import identity
from ijepa.config import parse_run
from ijepa.encoder_file import read_header
from ijepa.errors import UserError
from ijepa.files import digest
from ijepa.method import Method, load_method, method_names
from ijepa.start import begin_from
from ijepa.train import Stopped, train
from ijepa.whole import load_whole
from tests.conftest import Trained, raw_run_of
from workflow.plan.benchmark import read_benchmark
from workflow.plan.grid import Grid


def started(name: str, weights: Path, **more: Any) -> tuple[Method, str]:
    """A method's networks after a start, and the sentence about it."""
    vit = more.pop("vit", {})
    raw = raw_run_of(name, **more.pop("recipe", {}))
    raw["vit"] |= vit
    run = parse_run({**raw, "start": {"from": str(weights), **more}}, checked=not vit)
    torch.manual_seed(1)
    method = load_method(run.method).Method(run.recipe, run.vit)
    assert run.start is not None
    return method, begin_from(run.start, method, run.method)


def whole_of(trained: Trained, name: str) -> Path:
    """All networks of a trained run."""
    return trained(name).with_name("whole.safetensors")


@pytest.mark.parametrize("name", method_names())
def test_all_parts_of_a_run_are_those_that_it_ended_with(name: str, trained: Trained) -> None:
    expected, about = load_whole(whole_of(trained, name))
    assert about["run"]["method"] == name
    method, note = started(name, whole_of(trained, name))
    assert "fresh are none" in note
    state = method.state_dict()
    assert all(value.equal(state[key]) for key, value in expected.state_dict().items())


@pytest.mark.parametrize("name", method_names())
def test_an_encoder_is_taken_for_every_tower(name: str, trained: Trained) -> None:
    for weights in (trained("mae" if name == "mae" else name), whole_of(trained, name)):
        method, _ = started(name, weights, parts="encoder")
        expected = load_file(trained(name))
        for prefix in encoders_of(method):
            inner = method.get_submodule(prefix).state_dict()
            assert all(value.equal(inner[key]) for key, value in expected.items())


def encoders_of(method: Method) -> list[str]:
    """Names of a method's encoders."""
    kind = type(method.encoder)
    return [name for name, module in method.named_modules() if isinstance(module, kind)]


def test_the_encoder_of_another_method_is_taken_if_it_is_of_the_same_kind(
    trained: Trained,
) -> None:
    method, note = started("dino", whole_of(trained, "ibot"), parts="encoder")
    expected = load_whole(whole_of(trained, "ibot"))[0].encoder.state_dict()
    assert all(v.equal(method.encoder.state_dict()[k]) for k, v in expected.items())
    assert "student.head" in note
    with pytest.raises(UserError, match=r"missing are .*cls_token.* set the run's method"):
        started("mae", trained("ijepa"), parts="encoder")


def test_an_encoder_with_layer_scale_goes_on_by_a_recipe_that_has_it(
    trained: Trained, tmp_path: Path
) -> None:
    """DINOv2's encoders have it, DINO's have none."""
    weights, path = load_file(trained("dino")), tmp_path / "vit.pth"
    dim = len(weights["blocks.0.norm1.weight"])
    for scale in ("blocks.0.ls1", "blocks.0.ls2", "blocks.1.ls1", "blocks.1.ls2"):
        weights[f"{scale}.gamma"] = torch.rand(dim)
    torch.save(weights, path)
    for name in ("dino", "ibot", "lejepa"):
        with pytest.raises(UserError, match=r"ls1.gamma.*recipe.layer_scale"):
            started(name, path, parts="encoder")
        method, _ = started(name, path, parts="encoder", recipe={"layer_scale": 1e-5})
        assert all(v.equal(method.encoder.state_dict()[k]) for k, v in weights.items())


def test_learned_positions_are_refused_where_the_run_would_never_train_them(
    trained: Trained,
) -> None:
    with pytest.raises(UserError, match=r"learned positions, .*name a method whose encoder learns"):
        started("mae", trained("dino"), parts="encoder")
    method, _ = started("dino", trained("mae"), parts="encoder")
    assert method.encoder.state_dict()["pos_embed"].equal(load_file(trained("mae"))["pos_embed"])


def test_towers_come_each_from_its_own_and_the_rest_is_fresh(trained: Trained) -> None:
    method, note = started("ijepa", whole_of(trained, "ijepa"), parts="towers")
    whole = load_file(whole_of(trained, "ijepa"))
    context, target = method.context_encoder, method.target_encoder
    assert isinstance(context, torch.nn.Module)
    assert isinstance(target, torch.nn.Module)
    assert whole["encoder.norm.weight"].equal(context.state_dict()["norm.weight"])
    assert whole["target_encoder.norm.weight"].equal(target.state_dict()["norm.weight"])
    assert not context.state_dict()["norm.weight"].equal(target.state_dict()["norm.weight"])
    assert "predictor.predictor_blocks" in note


@pytest.mark.parametrize("name", ["data2vec", "ijepa", "dino"])
def test_a_second_stage_begins_with_the_average_equal_to_the_student(
    name: str, trained: Trained
) -> None:
    """data2vec's ViT-L: 800 epochs more, from the student, with another momentum."""
    method, _ = started(name, whole_of(trained, name), parts="student")
    state = method.state_dict()
    for average, own in method.averages.items():
        pairs = [
            (k, k.replace(f"{average}.", f"{own}.", 1)) for k in state if k.startswith(average)
        ]
        assert pairs
        assert all(state[key].equal(state[other]) for key, other in pairs)
    first = load_whole(whole_of(trained, name))[0].state_dict()
    (own,) = method.averages.values()
    assert all(v.equal(first[k]) for k, v in state.items() if k.startswith(f"{own}."))


def test_an_ijepa_without_a_moving_average_begins_with_the_student_of_one_with_it(
    trained: Trained,
) -> None:
    sigreg = {"anticollapse": "sigreg"}
    method, note = started("ijepa", whole_of(trained, "ijepa"), parts="student", recipe=sigreg)
    assert "fresh are none" in note
    first = load_whole(whole_of(trained, "ijepa"))[0].state_dict()
    assert all(value.equal(first[key]) for key, value in method.state_dict().items())


@pytest.mark.parametrize("name", method_names())
def test_another_resolution_needs_a_word_and_then_resamples_the_positions(
    name: str, trained: Trained
) -> None:
    weights, larger = whole_of(trained, name), {"image_size": 48}
    with pytest.raises(UserError, match=r"positions for images of 32 pixels, vit.image_size is 48"):
        started(name, weights, vit=larger)
    method, _ = started(name, weights, vit=larger, interpolate_positions=True)
    before = load_whole(weights)[0]
    inner, images = method.encoder.state_dict(), torch.rand(2, 3, 32, 32)
    assert inner["norm.weight"].equal(before.encoder.state_dict()["norm.weight"])
    large = torch.nn.functional.interpolate(images, size=48, mode="bicubic")
    with torch.no_grad():
        assert method.eval().encoder(large).shape[1] > before.encoder(images).shape[1]


def self_distilled(name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A checkpoint of DINO or iBOT, whose shared head has a second name in iBOT."""
    content: dict[str, Any] = {"epoch": 3, "args": Namespace(lr=1e-3), "fp16_scaler": {}}
    for key, value in tensors.items():
        tower, _, rest = key.partition(".")
        if key == "teacher.backbone.masked_embed":  # the release's teacher hides nothing
            continue
        names = [f"module.{rest}" if tower == "student" else rest]
        if name == "ibot" and "head.last_layer." in rest:
            names.append(names[0].replace("last_layer", "last_layer2"))
        content.setdefault(tower, {}).update(dict.fromkeys(names, value))
    return content


def wrapped(name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Tensors of a run as the method's release wraps them in its checkpoints."""
    if name == "ijepa":
        parts = ("encoder", "predictor", "target_encoder")
        content: dict[str, Any] = {
            part: {
                f"module.{key.removeprefix(f'{part}.')}": value
                for key, value in tensors.items()
                if key.startswith(f"{part}.")
            }
            for part in parts
        }
        return {**content, "opt": {"state": {0: {"exp_avg": torch.zeros(2)}}}, "epoch": 3}
    if name == "data2vec":
        student, teacher = (
            {k.removeprefix(f"{p}."): v for k, v in tensors.items() if k.startswith(f"{p}.")}
            for p in ("student", "teacher")
        )
        return {"model": student, "model_ema": teacher, "epoch": 3}
    if name in ("dino", "ibot"):
        return self_distilled(name, tensors)
    if name == "cae":  # the encoder is written twice
        encoder = {k: v for k, v in tensors.items() if k.startswith("encoder.")}
        return {"model": {**tensors, **{f"alignment_{k}": v for k, v in encoder.items()}}}
    return {"model": tensors, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}


@pytest.mark.parametrize("name", ["ijepa", "mae", "data2vec", "dino", "lejepa"])
def test_all_parts_are_taken_from_a_checkpoint_of_lightning(
    name: str, trained: Trained, tmp_path: Path
) -> None:
    """Its container is state_dict.model; that of data2vec's average is its own."""
    tensors = load_file(whole_of(trained, name))
    if name == "data2vec":
        content = wrapped(name, tensors)
        model = {f"model.{key}": value for key, value in content["model"].items()}
        content = {"state_dict": model, "model_ema": {"module": content["model_ema"]}}
    else:
        content = {"state_dict": {f"model.{key}": value for key, value in tensors.items()}}
    torch.save(content, tmp_path / "released.ckpt")
    method, note = started(name, tmp_path / "released.ckpt")
    expected = load_whole(whole_of(trained, name))[0].state_dict()
    state = method.state_dict()
    assert all(value.equal(state[key]) for key, value in expected.items()), note


@pytest.mark.parametrize("name", ["ijepa", "mae", "data2vec", "cae", "dino", "ibot"])
def test_all_parts_of_a_released_file_are_taken(
    name: str, trained: Trained, tmp_path: Path
) -> None:
    """The file is made from the names that the release's classes write."""
    tensors = load_file(whole_of(trained, name))
    torch.save(wrapped(name, tensors), tmp_path / "released.pth")
    method, note = started(name, tmp_path / "released.pth")
    expected = load_whole(whole_of(trained, name))[0].state_dict()
    state = method.state_dict()
    unused = {"teacher.mask_token"} if name == "ibot" else set()
    assert all(v.equal(state[key]) for key, v in expected.items() if key not in unused), note
    assert all(key in note for key in unused)


def test_a_second_head_that_is_no_copy_is_not_left_out(trained: Trained, tmp_path: Path) -> None:
    """iBOT without --shared_head has prototypes of their own for patches."""
    content = self_distilled("ibot", load_file(whole_of(trained, "ibot")))
    content["teacher"]["head.last_layer2.weight_v"] = torch.zeros(3, 3)
    torch.save(content, tmp_path / "released.pth")
    with pytest.raises(UserError, match=r"unknown are teacher\.head\.last_layer2\.weight_v"):
        started("ibot", tmp_path / "released.pth")


@pytest.mark.parametrize(
    ("name", "weights", "more", "message"),
    [
        ("ijepa", "mae/whole", {}, "is of a run of mae, not of ijepa: say start.parts: encoder"),
        ("ijepa", "ijepa/encoder", {}, "is an encoder alone: say start.parts: encoder"),
        ("ijepa", "nothing", {}, "is missing: name a file"),
        (
            "ijepa",
            "ijepa/whole",
            {"vit": {"dim": 48}},
            r"encoder is \[.*32.*\], the run's is \[.*48.*\]",
        ),
        (
            "ijepa",
            "ijepa/whole",
            {"vit": {"num_heads": 4}},
            "encoder with 2 attention heads, the run's has 4: set vit.num_heads",
        ),
        ("ijepa", "ijepa/whole", {"vit": {"depth": 3}}, r"missing are blocks\.2\."),
        (
            "ijepa",
            "ijepa/whole",
            {"vit": {"patch_size": 2}},
            r"patch_embed.proj.weight of its encoder is .*set the run's vit",
        ),
        ("ijepa", "ijepa/whole", {"parts": "heads"}, r"start\.parts: .*(given: 'heads')"),
        ("ijepa", "ijepa/whole", {"part": "all"}, r"start\.part: unknown key .*parts"),
    ],
)
def test_a_start_that_cannot_be_is_one_clear_error(
    name: str,
    weights: str,
    more: dict[str, Any],
    message: str,
    trained: Trained,
    tmp_path: Path,
) -> None:
    method, _, kind = weights.partition("/")
    path = tmp_path / "nothing"
    if kind:
        path = trained(method) if kind == "encoder" else whole_of(trained, method)
    with pytest.raises(UserError, match=message):
        started(name, path, **more)


@pytest.mark.parametrize("fault", [float("nan"), "whole"])
def test_weights_that_are_no_numbers_are_refused_before_training(
    fault: Any, trained: Trained, tmp_path: Path
) -> None:
    tensors = load_file(whole_of(trained, "mae"))
    bad = tensors["decoder_pred.weight"]
    tensors["decoder_pred.weight"] = bad.to(torch.int8) if fault == "whole" else bad * fault
    torch.save({"model": tensors}, tmp_path / "released.pth")
    with pytest.raises(UserError, match=r"decoder\.pred\.weight has values that are no numbers"):
        started("mae", tmp_path / "released.pth")


def test_a_file_without_the_predictor_names_what_is_missing(
    trained: Trained, tmp_path: Path
) -> None:
    content = wrapped("ijepa", load_file(whole_of(trained, "ijepa")))
    del content["predictor"]
    torch.save(content, tmp_path / "towers.pth")
    with pytest.raises(UserError, match=r"missing are predictor\.mask_token, .*other parts"):
        started("ijepa", tmp_path / "towers.pth")
    _, note = started("ijepa", tmp_path / "towers.pth", parts="towers")
    assert "fresh are predictor" in note


def test_a_run_goes_on_from_its_start_and_from_no_other(
    data: Path, tmp_path: Path, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    """Changed weights at the same path are another run; without training they come out again."""
    raw = raw_run_of("ijepa")
    raw["recipe"]["optim"] |= {"epochs": 0, "warmup_epochs": 0}
    weights = tmp_path / "weights.safetensors"
    out = tmp_path / "out" / "encoder.safetensors"
    tensors = load_file(whole_of(trained, "ijepa"))
    for scale in (1, 2):
        tensors["target_encoder.norm.weight"] *= scale
        save_file(tensors, weights)
        run = parse_run({**raw, "start": {"from": str(weights)}})
        train(run, data, tmp_path / "work", out)
        before = load_file(trained("ijepa"))["norm.weight"]
        assert load_file(out)["norm.weight"].equal(before * scale)
        assert "fresh are none" in capsys.readouterr().out
        assert read_header(out)["facts"]["start_sha256"] == digest(weights)
    assert sum(path.is_dir() for path in (tmp_path / "work").iterdir()) == 2
    moved = parse_run({**raw, "start": {"from": str(tmp_path / "moved.safetensors")}})
    assert moved.identity() == run.identity() != parse_run(raw).identity()
    with pytest.raises(UserError, match=r"moved\.safetensors is no file: name a run"):
        train(moved, data, tmp_path / "work", out)


def test_the_bytes_of_a_start_are_read_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, memo = tmp_path / "weights.pth", tmp_path / "start.json"
    reads: list[Path] = []

    def counted(path: Path) -> str:
        reads.append(path)
        return digest(path)

    monkeypatch.setattr(identity, "digest", counted)
    for number, content in enumerate((b"a", b"bb"), start=1):
        weights.write_bytes(content)
        for _ in range(2):
            assert identity.start_digest(str(weights), memo) == digest(weights)
            assert len(reads) == number


def test_a_started_run_that_is_cut_off_ends_like_an_undisturbed_one(
    data: Path, tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = {**raw_run_of("mae"), "start": {"from": str(whole_of(trained, "mae"))}}
    whole, cut = (tmp_path / name / "encoder.safetensors" for name in ("whole", "cut"))
    train(parse_run(raw), data, tmp_path / "work1", whole)
    answers = iter([False, False, False, True])
    with pytest.raises(Stopped):
        train(parse_run(raw), data, tmp_path / "work2", cut, stopping=lambda: next(answers))
    train(parse_run(raw), data, tmp_path / "work2", cut)
    assert all(v.equal(load_file(cut)[k]) for k, v in load_file(whole).items())
    fresh = load_file(trained("mae"))
    assert not all(v.equal(load_file(whole)[k]) for k, v in fresh.items())


def config(**runs: dict[str, Any]) -> dict[str, Any]:
    """A benchmark of runs of I-JEPA."""
    return {
        "name": "stages",
        "dataset": "tiny",
        "seeds": [0, 1],
        "runs": [{**raw_run_of("ijepa"), "name": name, **more} for name, more in runs.items()],
        "evaluations": [{"name": "knn"}],
        "tables": [{"name": "t", "title": "T", "evaluations": ["knn"], "runs": [[*runs][-1]]}],
    }


def test_a_run_of_the_config_is_trained_before_the_one_that_starts_from_it() -> None:
    """Also if no table shows it; the control is never started from anything."""
    grid = Grid(read_benchmark(config(first={}, second={"start": {"from": "first"}})))
    assert grid.trained == [("first", 0), ("first", 1), ("second", 0), ("second", 1)]
    assert grid.begun_from("second", 1) == [grid.encoder("first", 1)]
    started = grid.runs["second"].config(1)["start"]
    assert started == {"from": "results/stages/runs/first/seed1/whole.safetensors"}
    assert grid.begun_from("first", 0) == []
    assert Grid(read_benchmark(config(only={"start": {"from": "weights/{seed}.pth"}}))).begun_from(
        "only", 1
    ) == ["weights/1.pth"]
    assert not grid.runs["random_init"].start


def test_a_run_may_start_from_the_encoder_of_an_epoch_that_another_one_keeps() -> None:
    start = {"from": "first@epoch1", "parts": "encoder"}
    grid = Grid(read_benchmark(config(first={"keep": {"epochs": [1]}}, second={"start": start})))
    started = grid.runs["second"].config(1)["start"]
    assert started["from"] == "results/stages/runs/first/seed1/epochs/1.safetensors"
    assert ("first", 1) in grid.trained
    assert grid.begun_from("second", 1) == [grid.encoder("first", 1)]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (
            {"second": {"start": {"from": "first"}}, "first": {}},
            r"runs\.second\.start\.from: first must stand before second",
        ),
        ({"a": {"keep": {"whole": False}}, "b": {"start": {"from": "a"}}}, "a keeps no networks"),
        ({"a": {}, "b": {"start": {"from": "a@epoch1"}}}, "a keeps no epoch 1: add it to its keep"),
        (
            {"a": {"keep": {"epochs": [1]}}, "b": {"start": {"from": "a@epoch1"}}},
            r"start\.parts: of an epoch the encoder alone is kept: say parts: encoder",
        ),
    ],
)
def test_a_start_that_the_config_cannot_give_is_refused(runs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_benchmark(config(**runs))
