"""Model card of an encoder, and its results in the form of the Hub's ``.eval_results``.

Formats: huggingface.co/docs/hub/model-cards and /docs/hub/eval-results.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from ijepa.data.register import load_dataset, names
from ijepa.errors import UserError
from ijepa.files import read_json
from ijepa.method import load_method, method_names
from ijepa.result_file import read_result

HUB_DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "imagenet": "ILSVRC/imagenet-1k",
    "imagenet22k": "timm/imagenet-22k-wds",
}
"""Names on the Hub. They stand here because an edit of the register would make shards anew."""

HUB_LICENCES = re.compile(
    r"apache-2\.0|mit|bsd-[23]-clause|cc0-1\.0|cc-by(-nc)?(-nd|-sa)?-[234]\.0|gpl-3\.0|unknown"
)
"""Licences that the Hub knows by these names; any other is called ``other`` there."""

LOADING = {
    "timm": """\
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or "hf-hub:USER/NAME"
data = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**data, is_training=False)
features = model.forward_features(transform(image).unsqueeze(0))  # a vector for each token
pooled = model(transform(image).unsqueeze(0))""",
    "transformers": """\
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("FOLDER")  # or "USER/NAME"
model = AutoModel.from_pretrained("FOLDER"{arguments}).eval()
features = model(**processor(image, return_tensors="pt")).last_hidden_state""",
}


def results_of(folder: Path, encoder: str) -> list[dict[str, Any]]:
    """Results in a folder, at any depth, of the encoder with this digest, in the files' order.

    Raises UserError if there is none, and for a damaged file.
    """
    if not folder.is_dir():
        raise UserError(f"--results {folder} is no folder: name that of the results")
    results = []
    for path in sorted(folder.rglob("*.json")):
        content = read_json(path)
        if isinstance(content, dict) and {"evaluation", "metric", "about"} <= content.keys():
            results.append(read_result(path))
    own = [result for result in results if result["about"].get("encoder") == encoder]
    if not own:
        raise UserError(
            f"--results {folder} has {len(results)} results, none of the encoder {encoder}: "
            "evaluate it first, or leave --results out"
        )
    return own


def model_card(
    library: str,
    config: dict[str, Any],
    about: dict[str, Any],
    results: list[dict[str, Any]],
    licence: str,
) -> tuple[str, list[dict[str, Any]]]:
    """README.md of a folder for ``library``, and entries of ``.eval_results``."""
    run, facts = about["run"], about["facts"]
    origin = facts.get("released") or {}
    method = origin.get("layout") or run["method"]
    title = f"{method}, ViT of width {run['vit']['dim']} and depth {run['vit']['depth']}"
    sections = {
        "Use": f"```python\n{use(library, config)}\n```\n\n{view(run['vit']['image_size'])}",
        "Method": method_text(method),
        "Data": data_text(run.get("dataset")),
        "Licence": f"{licence}. It is the licence of the weights; that of the data is above."
        if licence != "unknown"
        else "None was stated at export (`--licence`): ask the owner of the weights.",
        "Results": table(results) if results else "None was given at export (`--results`).",
        "Origin": origin_text(facts),
        "Recipe": f"```yaml\n{yaml.safe_dump(plain(run), sort_keys=False)}```",
    }
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items())
    head = yaml.safe_dump(metadata(library, method, run, licence), sort_keys=False)
    return f"---\n{head}---\n\n# {title}\n\n{body}\n", entries(results)


def metadata(library: str, method: str, run: dict[str, Any], licence: str) -> dict[str, Any]:
    """Keys by which the Hub finds a model."""
    slug = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")
    listed = HUB_LICENCES.fullmatch(slug)
    paper = re.search(r"arxiv\.org/abs/(\d+\.\d+)", documentation(method))
    dataset = HUB_DATASETS.get(run.get("dataset", ""))
    return {
        "library_name": library,
        "pipeline_tag": "image-feature-extraction",
        "license": slug if listed else "other",
        **({} if listed else {"license_name": slug}),
        "tags": ["self-supervised", method, *([f"arxiv:{paper[1]}"] if paper else [])],
        **({"datasets": [dataset]} if dataset else {}),
    }


def documentation(method: str) -> str:
    """Docstring of a method of this project, "" for any other name."""
    return (load_method(method).__doc__ or "") if method in method_names() else ""


def use(library: str, config: dict[str, Any]) -> str:
    """Python that loads the folder; classes with a pooler of their own load without it."""
    pooler = config.get("architectures") in (["ViTModel"], ["BeitModel"])
    arguments = ", add_pooling_layer=False" if pooler else ""
    return LOADING[library].replace("{arguments}", arguments)


def view(size: int) -> str:
    """Paragraph on how images are prepared."""
    return (
        f"Our results are of images that are resized bicubically and cut to {size} x {size} "
        f"pixels. An image whose short side is {size} already is only cut; the preprocessor "
        "enlarges it first. Where an odd number of pixels is cut off, its cut lies one pixel from "
        "ours."
    )


def method_text(method: str) -> str:
    """First paragraphs of a method's documentation: its idea and its source."""
    text = documentation(method).partition("\n\nShape suffixes")[0]
    return text or f"Taken in from a file in the layout of {method}, which names no method."


def data_text(dataset: str | None) -> str:
    """Data set of the pretraining with its source and licence; see the origin if there is none."""
    if dataset is None:
        return "That of the release; the weights do not name it."
    if dataset not in names():
        return f"`{dataset}`, which is not in this project's register."
    entry = load_dataset(dataset)
    return f"{entry.title}. {entry.citation}. Licence: {entry.licence}"


def origin_text(facts: dict[str, Any]) -> str:
    """List of what made the weights: commit, machine, images seen; of a release file its digest."""
    words = {
        "commit of ijepa-bench": facts.get("commit"),
        "machine": facts.get("machine"),
        "images seen": facts.get("images_seen"),
        "version of the data": facts.get("data_version"),
        "SHA-256 of the weights that it started from": facts.get("start_sha256"),
        **{f"published {name}": value for name, value in (facts.get("released") or {}).items()},
    }
    return "\n".join(f"- {name}: {value}" for name, value in words.items() if value is not None)


def table(results: list[dict[str, Any]]) -> str:
    """Markdown table of results, with n, interval and provenance; shares in percent."""
    lines = [
        "| data | evaluation | metric | value | 95 % interval | n | commit | machine |",
        "|---|---|---|---:|---|---:|---|---|",
    ]
    for result in results:
        low, high = map(shown, [result] * 2, result["interval"])
        lines.append(
            f"| {result['dataset']}, {result['label']} | {result['evaluation']} | "
            f"{result['metric']} | {shown(result, result['value']):.2f} | {low:.2f} to {high:.2f} "
            f"| {result['n']} | {result['commit']} | {result['machine']} |"
        )
    return "\n".join(lines)


def shown(result: dict[str, Any], value: float) -> float:
    """Value of a result's metric as it is shown: a share of images in percent."""
    return round(100 * value if result["metric"] == "top1" else value, 2)


def entries(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results on data sets that the Hub has, as ``.eval_results`` holds them."""
    return eval_result_entries_to_yaml(
        [
            EvalResultEntry(
                dataset_id=HUB_DATASETS[result["dataset"]],
                task_id=result["evaluation"],
                value=shown(result, result["value"]),
                notes=f"{result['metric']}, n={result['n']}, 95 % interval "
                f"{shown(result, result['interval'][0])} to {shown(result, result['interval'][1])}"
                f", ijepa-bench {result['commit']}, protocol {result['protocol']}",
            )
            for result in results
            if result["dataset"] in HUB_DATASETS
        ]
    )


def plain(value: Any) -> Any:
    """Value with lists in place of tuples, as YAML writes them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
