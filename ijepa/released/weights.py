"""Encoders from and to the file layouts in which others publish theirs.

``python -m ijepa.released.weights import|export|inspect`` converts and describes files; ``push``
uploads an exported folder to a hub.
"""

import argparse
import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from ijepa.errors import UserError, program, run_command
from ijepa.released.layouts import FOLDERS, LAYOUTS, TOWERS


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(prog=program("ijepa.released.weights"), description=__doc__)
    commands = options.add_subparsers(dest="command", required=True)

    command = commands.add_parser("import", help="convert a published file to an encoder")
    command.add_argument("file", type=Path, help="a torch or .safetensors file")
    command.add_argument("--out", type=Path, required=True, help="file for the encoder")
    command.add_argument("--layout", choices=["auto", *LAYOUTS], default="auto")
    command.add_argument(
        "--tower",
        choices=TOWERS,
        help="the encoder to take from a file with two; ijepa: target (default) or context; dino, "
        "ibot: teacher (default) or student; data2vec, timm: model (default) or ema",
    )
    command.add_argument("--image-size", type=int, help="in pixels (default: that of its training)")
    command.add_argument("--num-heads", type=int, help="needed if the width is no published one")
    command.add_argument("--licence", help="licence of the file, kept in the encoder's header")
    command.add_argument(
        "--keep",
        choices=("encoder", "whole"),
        default="encoder",
        help="whole: also both towers and predictor of I-JEPA, in whole.safetensors beside --out, "
        "which the decoder shows predictions of",
    )
    command.add_argument("--force", action="store_true", help="replace another file at --out")

    command = commands.add_parser("export", help="write an encoder in a published layout")
    command.add_argument("file", type=Path, help="an encoder of this project")
    command.add_argument("--out", type=Path, required=True, help="file, or folder, to write")
    command.add_argument("--layout", choices=[*LAYOUTS, *FOLDERS], required=True)
    command.add_argument(
        "--results", type=Path, help="folder of results, for a folder's model card"
    )
    command.add_argument("--licence", help="licence of the weights, for a folder's model card")
    command.add_argument("--force", action="store_true", help="replace other files at --out")

    command = commands.add_parser("inspect", help="print the content of a file")
    command.add_argument("file", type=Path, help="an encoder of this project or of others")

    command = commands.add_parser("push", help="upload an exported folder to a hub")
    command.add_argument("file", type=Path, metavar="folder", help="a folder that export wrote")
    command.add_argument("repo", help="USER/NAME; HF_TOKEN holds the token")
    command.add_argument("--private", action="store_true", help="a new repository is private")
    return options


if __name__ == "__main__":
    parser().parse_args()  # answer --help before torch is imported, which takes seconds

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ijepa.architecture import ViTConfig
from ijepa.checkpoint import cannot_be_written, load_encoder, may_replace, save_tensors
from ijepa.encoder_file import encoder_digest
from ijepa.files import digest, written_whole
from ijepa.imported import import_whole
from ijepa.provenance import here
from ijepa.released import convert as released
from ijepa.released import folder
from ijepa.released.card import results_of
from ijepa.released.hub import push
from ijepa.released.tensors import ours, read_tensors


def import_encoder(
    source: Path,
    out: Path,
    layout: str = "auto",
    tower: str | None = None,
    image_size: int | None = None,
    num_heads: int | None = None,
    licence: str | None = None,
    force: bool = False,
) -> None:
    """Convert the encoder of a published file to one of this project; its header names the origin.

    Without ``tower`` the encoder is the one that its authors evaluate. The position table is
    resampled if ``image_size`` differs from that of training (see released.resized). A published
    file holds neither the number of images seen nor the seed: both are null.
    """
    reading = released.encoder(read_tensors(source), str(source), layout, tower)
    published_heads = reading.shape["num_heads"]
    if num_heads is None and published_heads is None:
        raise UserError(
            f"{source} does not tell how many attention heads an encoder of width "
            f"{reading.shape['dim']} has: say --num-heads"
        )
    if released.TABLE in reading.weights and num_heads not in (None, published_heads):
        raise UserError(
            f"--num-heads is {num_heads}, but {source} has {published_heads}: leave it out"
        )
    for name, value in reading.weights.items():
        if not value.is_floating_point() or not value.isfinite().all():
            raise UserError(
                f"{source}: {name} has values that are no numbers, or whole ones ({value.dtype}): "
                "get the file again, or weights that are not quantised"
            )
    weights = {
        name: value.detach().to(torch.float32, copy=True).contiguous()
        for name, value in reading.weights.items()
    }
    try:
        heads = published_heads if num_heads is None else num_heads
        vit = ViTConfig(**{**reading.shape, "num_heads": heads})
        trained_size = vit.image_size
        side = trained_size if image_size is None else image_size
        weights, vit = released.resized(weights, vit, side)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    about = {
        "run": {"method": "released", "seed": None, "vit": dataclasses.asdict(vit)},
        "variant": dataclasses.asdict(reading.variant),
        "facts": {
            "images_seen": None,
            "released": {
                "file": source.name,
                "sha256": digest(source),
                "layout": reading.layout,
                "tower": reading.tower or None,
                "image_size": trained_size,
                "licence": licence,
            },
            **here(),
        },
    }
    save_tensors(out, weights, about, replace=force)


def export_encoder(source: Path, out: Path, layout: str, force: bool = False) -> None:
    """Write an encoder in a published layout: safetensors if ``out`` ends so, else a torch file."""
    encoder, about = load_encoder(source)
    released.check_published(encoder.config)
    tower = about["facts"].get("released", {}).get("tower")
    key, weights = released.publish(encoder.state_dict(), encoder.variant, layout, tower)
    weights = {name: value.clone() for name, value in weights.items()}
    if out.suffix == ".safetensors" and key:
        raise UserError(f"{out}: a file of {layout} is torch's: end its name in .pth")
    try:
        with written_whole(out) as part:
            if out.suffix == ".safetensors":
                save_file(weights, part, metadata={"format": "pt"})
            else:
                with part.open("wb") as file:  # torch writes a path's name into the file
                    torch.save({key: weights} if key else weights, file)
            may_replace(out, part, force)
    except (SafetensorError, RuntimeError) as error:
        raise cannot_be_written(out, error) from None


def export_folder(
    source: Path,
    out: Path,
    layout: str,
    results: Path | None = None,
    licence: str | None = None,
    force: bool = False,
) -> None:
    """Write an encoder as a folder that timm or transformers opens, with a model card.

    ``results`` is a folder in which the encoder's results are looked for. Without ``licence`` the
    card has that of the imported file, or says that none was stated.
    """
    encoder, about = load_encoder(source)
    own = [] if results is None else results_of(results, encoder_digest(source))
    licence = licence or about["facts"].get("released", {}).get("licence") or "unknown"
    weights, texts = folder.contents(layout, encoder, about, own, licence)
    folder.write(out, weights, texts, lambda path, part: may_replace(path, part, force))


def describe(path: Path) -> dict[str, Any]:
    """Content of a file of this project or others: layout, towers, sizes, leftovers, SHA-256."""
    if about := ours(path):
        encoder, _ = load_encoder(path)
        weights, variant, shape = encoder.state_dict(), encoder.variant, about["run"]["vit"]
        origin = about["facts"].get("released", {})
        lines: dict[str, Any] = {"layout": "this project's", "method": about["run"]["method"]}
        lines |= {f"imported {name}": value for name, value in origin.items()}
        counts: Counter[str] = Counter()
    else:
        tensors = read_tensors(path)
        best = released.encoder(tensors, str(path))
        fits = [reading.layout for reading in released.readings(tensors) if not reading.problems]
        weights, variant, shape = best.weights, best.variant, best.shape
        lines = {
            "layout": best.layout,
            "fits also": ", ".join(fits[1:]) or "no other",
            "towers": ", ".join(tower or "one" for tower in best.towers),
        }
        counts = Counter(".".join(name.split(".")[:2]) for name in best.leftovers)
    fixed = weights["pos_embed"].numel() if variant.positions.startswith("sincos") else 0
    return {
        **lines,
        **{name: shape[name] for name in ("dim", "depth", "patch_size", "image_size", "mlp_ratio")},
        "num_heads": shape["num_heads"] or "not in the file",
        "variant": ", ".join(
            f"{name} {getattr(variant, name)}" for name in ("class_token", "positions", "blocks")
        ),
        "parameters": f"{sum(value.numel() for value in weights.values()) - fixed:,}",
        "fixed positions": f"{fixed:,}",
        "leftovers": ", ".join(f"{n} of {name}" for name, n in sorted(counts.items())) or "none",
        "sha256": digest(path),
    }


def main() -> None:
    """Entry point of the command line."""
    options = vars(parser().parse_args())
    action, file = options.pop("command"), options.pop("file")
    if action == "import":
        keep = options.pop("keep")
        import_encoder(file, **options)
        if keep == "whole":
            import_whole(file, options["out"])
    elif action == "export" and options["layout"] in FOLDERS:
        export_folder(file, **options)
    elif action == "export":
        card = [options.pop(name) for name in ("results", "licence")]
        if any(card):
            raise UserError(
                f"--results and --licence are for {' and '.join(FOLDERS)}: leave them out"
            )
        export_encoder(file, **options)
    elif action == "push":
        print(push(file, **options))
    else:
        for name, value in describe(file).items():
            print(f"{name:19} {value}")


if __name__ == "__main__":
    run_command(main)
