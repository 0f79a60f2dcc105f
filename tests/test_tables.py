"""Tables: from results to numbers beside the papers', in every format, and what is refused."""

import copy
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.report import (
    formats,
    metrics,
    published,
    table_view,
    tables,
)
from evals.report.formats import Cell, Header, View
from evals.report.plan import TableSpec
from evals.report.table import Table, tabulate
from ijepa.errors import UserError
from tests.tidy_results import PAIR, PAPER, SPEC, entry, of_paper, plan_of, tidy
from workflow.plan.__main__ import main
from workflow.plan.benchmark import read_benchmark
from workflow.plan.check import check
from workflow.plan.grid import Grid

ROOT = Path(__file__).parents[1]
MINI: dict[str, Any] = yaml.safe_load((ROOT / "config" / "mini.yaml").read_text())

pytestmark = pytest.mark.usefixtures("real_register")


def check_config(config: dict[str, Any]) -> None:
    check(read_benchmark(config))


def test_a_table_says_of_which_tokens_its_features_are_and_marks_a_choice_on_test_images() -> None:
    frame = tidy(
        entry("a", 0, "knn", 50, pool="patches"),
        entry("b", 0, "knn", 60, pool="cls", chosen_on="test"),
    )
    table = tabulate(frame, TableSpec("own", "Own", ["knn"], seeds=[0]))
    assert "knn: features are [cls] (b); the average of the patches (a)" in table.texts
    assert "knn of b: a setting was chosen on the test images, as the papers do" in table.problems
    assert table.marked == {("b", "knn")}


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from("abcd"), st.integers(0, 3), st.sampled_from(["x", "y"])),
        st.floats(0, 100),
        min_size=1,
    )
)
def test_a_table_of_random_results_is_their_pivot(
    values: dict[tuple[str, int, str], float],
) -> None:
    frame = tidy(*(entry(*key, value) for key, value in values.items()))
    spec = TableSpec("any", "Any", ["x", "y"])
    rows = tabulate(frame, spec).rows.set_index("run")
    statistic: Literal["mean", "std"]
    for name, statistic in (("", "mean"), ("_std", "std")):
        pivot = frame.pivot_table(
            index="run", columns="evaluation", values="value", aggfunc=statistic
        )
        for evaluation in pivot:
            expected = pivot[evaluation].dropna()
            got = rows[f"{evaluation}{name}"].dropna()
            pd.testing.assert_series_equal(got, expected, check_names=False)


@pytest.mark.parametrize(
    "name", [table["name"] for table in PAPER["tables"] if "published" in table]
)
def test_every_published_number_is_in_its_table_without_any_result(name: str) -> None:
    table = of_paper(name, tidy())
    numbers = published.published_numbers()
    numbers = numbers[numbers["table"] == name]
    shown = table_view.view(table)
    columns = [i for i, header in enumerate(shown.headers) if header.text.endswith(", paper")]
    columns = [i for i in columns if "GPU" not in shown.headers[i].text]
    texts = sorted(row[i].text for row in shown.rows for i in columns)
    assert texts == sorted(f"{value:.1f}" for value in numbers["value"])
    measured = [cell.text for row in shown.rows for cell in row if cell.kind == "measured"]
    assert len(measured) == len(numbers)
    assert set(measured) == {"-"}
    for value in numbers["value"]:
        assert f"*{value:.1f}*" in table_view.markdown(table)


def test_a_measured_row_has_number_interval_difference_n_and_run() -> None:
    frame = tidy(
        entry("ijepa_vith14", 0, "in1k_linear", 79.6, n=50_000, gpu_hours=1000, epochs=300)
    )
    (line,) = [
        line
        for line in table_view.markdown(of_paper("table1", frame)).splitlines()
        if "79.6" in line
    ]
    assert line == (
        "| ijepa | ViT-H/14 | 300 | no | *79.3* | 79.60 [78.6, 80.6] | +0.30 | 50,000 | *<1152* "
        "| 1,000.0 | run ijepa_vith14 |"
    )


def test_a_share_and_its_interval_have_two_decimals() -> None:
    share = {"metric": "identification", "low": 0.634, "high": 0.718}
    frame = tidy(entry("ijepa_vith14", 0, "in1k_linear", 0.682, **share))
    assert "| 0.68 [0.63, 0.72] |" in table_view.markdown(of_paper("table1", frame))


def test_rows_stand_in_the_papers_order_and_those_without_a_run_say_so() -> None:
    rows = of_paper("table2", tidy()).rows
    assert rows["method"].tolist() == [
        *["data2vec", "mae", "mae", "ijepa", "ijepa", "ijepa"],
        *["ibot", "dino", "simclr_v2", "byol", "msn"],
    ]
    shown = table_view.view(of_paper("table2", tidy())).rows
    assert [row[-1].text for row in shown if row[0].text in ("simclr_v2", "msn")] == [
        "no run here"
    ] * 2


def test_a_run_that_fills_no_row_stands_below_the_published_ones() -> None:
    config = copy.deepcopy(PAPER)
    config["runs"].append({**config["runs"][0], "name": "mine"})
    config["tables"][0]["runs"]["mine"] = {}
    check_config(config)
    frame = tidy(entry("mine", 0, "in1k_linear", 60, method="ijepa"))
    last = table_view.view(tables.tables_of(plan_of(config), frame)["table1"]).rows[-1]
    assert [cell.text for cell in last[:5]] == ["ijepa", "-", "-", "-", "-"]
    assert last[5].text == "60.00 [59.0, 61.0]"


LARGE = {"method": "ijepa", "arch": "ViT-L/16"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": {"mae_vitl16": {"method": "mae", "arch": "ViT-X/1"}}}, "no row of table1"),
        ({"runs": {"mae_vitl16": {"method": "mae"}}}, "several rows of table1: .*ViT-H/14, 1600"),
        ({"runs": {"mae_vitl16": {"size": "L"}}}, "size is unknown: allowed are method"),
        (
            {"runs": {"ijepa_vitl16": LARGE, "ijepa_vitl16_500ep": LARGE}},
            "is filled by ijepa_vitl16 already",
        ),
        ({"runs": {"mae_vitl16": {"method": "dino"}}}, "it is a run of mae, the row is of dino"),
        ({"runs": ["mae_vitl16"]}, "say for each run which row of table1"),
        ({"published": "table99"}, "'table99' is no table of .*published: it has table1"),
        ({"evaluations": ["cifar100_linear"]}, "table1 has none of them: it has in1k_linear"),
    ],
)
def test_a_row_that_cannot_be_filled_is_refused(change: dict[str, Any], message: str) -> None:
    config = copy.deepcopy(PAPER)
    config["tables"] = [{**config["tables"][0], **change}]
    with pytest.raises(UserError, match=f"tables.table1.*{message}"):
        check_config(config)


def test_small_images_are_never_put_beside_the_papers() -> None:
    config = copy.deepcopy(MINI)
    config["evaluations"][0] |= {"name": "in1k_linear", "evaluation": "linear_probe"}
    stated = {"ijepa": {"method": "ijepa", "arch": "ViT-H/14"}}
    config["tables"] = [{**PAPER["tables"][0], "runs": stated}]
    with pytest.raises(
        UserError, match="in1k_linear is on cifar10, the published numbers are on im"
    ):
        check_config(config)
    frame = tidy(entry("ijepa_vith14", 0, "in1k_linear", 43, dataset="cifar10"))
    table = of_paper("table1", frame)
    assert (
        "ImageNet-1k, linear of ijepa_vith14: it is on cifar10, the paper's is on imagenet"
        in table.problems
    )
    assert "43" not in table_view.markdown(table).split("Problems")[0]


def test_a_table_of_its_own_has_no_published_column() -> None:
    for table in tables.tables_of(plan_of(MINI), tidy()).values():
        assert not any(header.kind == "published" for header in table_view.view(table).headers)
        runs = [run["name"] for run in MINI["runs"]]
        assert [row[0].text for row in table_view.view(table).rows] == runs  # the config's order


def faulty(row: dict[str, Any], *more: dict[str, Any]) -> Table:
    """A table of two runs and two seeds, one of whose results is another."""
    rows = [old for old in PAIR if (old["run"], old["seed"]) != (row["run"], row["seed"])]
    return tabulate(tidy(*rows, row, *more), SPEC)


@pytest.mark.parametrize(
    ("table", "problem", "shown"),
    [
        (faulty(entry("b", 1, "knn", math.nan)), "knn of b: seed 1 is nan, not a number", "- (!)"),
        (faulty(entry("b", 1, "knn", math.inf)), "knn of b: seed 1 is inf, not a number", "- (!)"),
        (faulty(entry("b", 1, "knn", 101)), "seed 1 is 101 %, not between 0 and 100", "- (!)"),
        (faulty(PAIR[3], entry("b", 1, "knn", 90)), "2 results of seed 1 (51.00, 90.00)", "- (!)"),
        (faulty(entry("b", 1, "knn", 51, data_version="d2")), "different versions", "- (!)"),
        (
            faulty(entry("b", 1, "knn", 51, protocol='{"epochs": 1}')),
            "different protocols",
            "- (!)",
        ),
        (faulty(entry("b", 1, "knn", 9, metric="rankme")), "of different metrics", "- (!)"),
        (
            tabulate(tidy(*PAIR[:3]), SPEC),
            "knn of b: seed 1 is missing",
            "50.00 [49.0, 51.0] (!)",
        ),
    ],
    ids=["nan", "infinite", "range", "duplicate", "data", "protocol", "metric", "seed"],
)
def test_bad_input_is_marked_and_listed_and_never_averaged(
    table: Table, problem: str, shown: str
) -> None:
    assert any(problem in text for text in table.problems), table.problems
    text = table_view.markdown(table)
    assert f"| b | {shown} |" in text
    assert "| a | 50.50 +- 0.71 |" in text
    assert problem in text.split("Problems, marked (!):")[1]


def test_runs_of_another_protocol_or_data_version_are_named_with_what_differs() -> None:
    other = json.dumps({"epochs": 28, "finetune": {"lr": 2}})
    rows = [entry(run, seed, "knn", 50) for run in "abc" for seed in (0, 1)]
    odd = [
        row | {"protocol": other, "data_version": "d2"} if row["run"] == "c" else row
        for row in rows
    ]
    table = tabulate(tidy(*odd), SPEC)
    assert table.problems == [
        "knn: different protocols in one column (finetune.lr 1 of a, b; 2 of c)",
        "knn: different versions of the data in one column (d1 of a, b; d2 of c)",
    ]
    assert "| c | 50.00 +- 0.00 (!) |" in table_view.markdown(table)
    # A setting that the config itself asks for is no fault.
    agreed = tabulate(tidy(*odd), replace(SPEC, differs={"knn": ["c"]}))
    assert [text for text in agreed.problems if "protocol" in text] == []
    by_seed = [row | {"protocol": other} if row["seed"] == 1 else row for row in rows]
    message = "(finetune.lr 1 of a seed 0, b seed 0, c seed 0; 2 of a seed 1, b seed 1, c seed 1)"
    assert any(message in text for text in tabulate(tidy(*by_seed), SPEC).problems)


def test_metrics_have_no_mean_of_what_has_no_number() -> None:
    rows = [*PAIR[:3], entry("b", 1, "knn", math.nan), entry("b", 0, "linear_probe", 60)]
    assert metrics.metrics(tidy(*rows)) == {"a": {"knn": 50.5}, "b": {"linear_probe": 60.0}}


def test_one_encoder_under_two_seeds_is_named() -> None:
    table = faulty(entry("b", 1, "knn", 51, encoder="b 0"))
    assert table.problems == ["b seed 0, b seed 1: the same encoder, b 0"]


def test_results_that_are_right_have_no_problems() -> None:
    assert tabulate(tidy(*PAIR), SPEC).problems == []
    assert "Problems" not in table_view.markdown(tabulate(tidy(*PAIR), SPEC))


def existing(config: dict[str, Any], folder: Path) -> list[Path]:
    """Results of a config that lie in a folder."""
    grid = Grid(read_benchmark(config))
    paths = [folder / Path(path).relative_to(grid.results) for path in grid.wanted]
    return [path for path in paths if path.exists()]


@pytest.mark.parametrize("name", ["mini", "hour", "hours"])
def test_the_committed_results_have_no_problems_and_make_the_committed_tables(name: str) -> None:
    config = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())
    folder = ROOT / "results" / "reference" / name
    plan, paths = plan_of(config), existing(config, folder)
    for table_name, table in tables.tables_of(plan, tables.tidy_results(plan, paths, None)).items():
        # The hour's six methods were trained on different days.
        assert [text for text in table.problems if not text.startswith("mixed commits")] == []
        assert table_view.markdown(table) == (folder / "tables" / f"{table_name}.md").read_text()


EXTERNAL = """run,seed,evaluation,value,low,high,n,method
mine,0,knn,55.5,54.5,56.5,10000,my method
mine,0,linear_probe,66,,,,my method
"""


def test_a_result_from_outside_is_in_the_tables_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(EXTERNAL)
    config = {**MINI, "external": [str(tmp_path / "mine.csv")]}
    check_config(config)
    plan = plan_of(config)
    made = tables.tables_of(plan, tables.tidy_results(plan, [], None))
    text = table_view.markdown(made["cifar10"])
    source = f"external: {tmp_path / 'mine.csv'}"
    assert f"| mine | 66.00 | - | 55.50 [54.5, 56.5] | - | - | {source} |" in text
    assert "mine" not in table_view.markdown(made["clevr"])


def test_a_result_from_outside_stands_below_the_papers_or_fills_a_row(tmp_path: Path) -> None:
    """Over 5 s: the paper's whole config is planned twice and checked."""
    (tmp_path / "mine.csv").write_text("run,evaluation,value\nmine,in1k_linear,76.5\n")
    config = {**copy.deepcopy(PAPER), "external": [str(tmp_path / "mine.csv")]}
    plan = plan_of(config)
    made = tables.tables_of(plan, tables.tidy_results(plan, [], None))["table1"]
    assert table_view.view(made).rows[-1][0].text == "mine"
    runs = config["tables"][0]["runs"]
    runs["mine"] = runs.pop("mae_vitl16")
    check_config(config)
    plan = plan_of(config)
    made = tables.tables_of(plan, tables.tidy_results(plan, [], None))["table1"]
    assert "| *76.0* | 76.50 | +0.50 |" in table_view.markdown(made)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run,value\nmine,1\n", "no column evaluation"),
        ("run,evaluation,value,colour\nmine,knn,1,red\n", "column colour is unknown: allowed"),
        ("run,evaluation,value\nmine,knn,much\n", ":2: value 'much': write a number"),
        ("run,evaluation,value,seed\nmine,knn,1,1.5\n", ":2: seed '1.5': write a whole number"),
        ("run,evaluation,value,metric\nmine,knn,1,f1\n", ":2: metric 'f1' is unknown: allowed"),
        ("run,evaluation,value\nmine,k_nn,1\n", "evaluation 'k_nn' is not among evaluations"),
        ("run,evaluation,value\n,knn,1\n", ":2: run is empty: write it"),
        ("", r"mine\.csv is no CSV \(No columns to parse"),
        (
            "run,evaluation,value\nmine,knn,1,2,3\nmine,knn,1\n",
            "lines with more fields than its first",
        ),
        ("run,evaluation,value\nmine,knn,1\nmine,knn,1,2\n", r"mine\.csv is no CSV"),
        ("run,evaluation,value\nmae,knn,1\n", "run 'mae' is one of this config: give it another"),
    ],
)
def test_a_file_from_outside_that_cannot_be_shown_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        check_config({**MINI, "external": [str(tmp_path / "mine.csv")]})
    with pytest.raises(UserError, match="does not exist: bring it"):
        check_config({**MINI, "external": [str(tmp_path / "other.csv")]})
    (tmp_path / "mine.csv").rename(tmp_path / "mine.txt")
    with pytest.raises(UserError, match=r"its name must end in \.csv: rename it"):
        check_config({**MINI, "external": [str(tmp_path / "mine.txt")]})


def test_a_result_from_outside_on_other_images_is_marked(tmp_path: Path) -> None:
    text = EXTERNAL.replace("method\n", "method,dataset\n", 1).replace(
        "my method\n", "x,cifar100\n"
    )
    (tmp_path / "mine.csv").write_text(text)
    config = {**MINI, "external": [str(tmp_path / "mine.csv")]}
    plan, paths = plan_of(config), existing(config, ROOT / "results" / "reference" / "mini")
    made = tables.tables_of(plan, tables.tidy_results(plan, paths, None))["cifar10"]
    assert ("mine", "knn") in made.marked
    assert any("different data sets in one column" in text for text in made.problems)


HARD = View(
    [Header("a_b & c"), Header("50 %, paper", "published"), Header("<x>", "measured")],
    [
        [Cell("[first] #1"), Cell("1.0", "published", 1.0), Cell("2.00 +- 0.10", "measured", 2.0)],
        [Cell("*2 \\ ~ ^ {} $"), Cell("-", "published"), Cell("-", "measured", marked=True)],
        [Cell('| "0.04->0.4"'), Cell("3.0", "published", 3.0), Cell("é", "measured")],
    ],
)


def test_latex_is_escaped_and_whole() -> None:
    text = formats.latex("T_1: 100 %", HARD, "a & b", ["c_d"])
    assert r"a\_b \& c & 50 \%, paper & \textless{}x\textgreater{} \\" in text
    assert r"{[}first] \#1 & \textit{1.0} & 2.00 $\pm$ 0.10 \\" in text
    assert r"\textbackslash{} \textasciitilde{} \textasciicircum{} \{\} \$" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(f"\\{rule}") == 1
    assert all(
        len(re.findall(r"(?<!\\)&", line)) == 2
        for line in text.splitlines()
        if line.endswith(r"\\")
    )


def test_latex_compiles(tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("Debian's texlive-latex-recommended is not installed")
    parts = [formats.latex("T_1: 100 %", HARD, "a & b", ["c_d"])]
    for table in tables.tables_of(plan_of(PAPER), tidy()).values():
        parts.append(formats.latex(table.title, table_view.view(table), table_view.note(table)))
    (tmp_path / "all.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\n"
        + "\n".join(parts)
        + "\\end{document}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_html_is_escaped_and_tells_published_from_measured() -> None:
    text = formats.html("A < B", HARD, "a & b", ["c > d"])
    assert "<h1>A &lt; B</h1>" in text
    assert '<td class="published">1.0</td>' in text
    assert '<td class="measured">2.00 +- 0.10</td>' in text
    assert "<li>c &gt; d</li>" in text


def test_markdown_cells_cannot_end_a_cell() -> None:
    lines = formats.markdown("T", HARD, "note").splitlines()
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 4 for line in lines[2:7])


def test_the_command_makes_tables_of_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over 5 s: the paper has fifteen tables, and most a figure."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["plan", "tables", str(ROOT / "config" / "paper.yaml")])
    main()
    made = {path.name for path in (tmp_path / "results" / "paper" / "tables").iterdir()}
    names = {table["name"] for table in PAPER["tables"]}
    kinds = ("csv", "md", "tex", "html", "svg")
    assert made == {f"{name}.{kind}" for name in names for kind in kinds} | {"tidy.csv"}
