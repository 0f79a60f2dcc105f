"""Checkpoints of an unfinished run, and encoders, which a finished run hands to evaluation.

``python -m ijepa.checkpoint import|export|inspect`` converts encoders from and to the file layouts
in which others publish theirs; ``push`` uploads an exported folder to a hub.
"""

import _codecs
import argparse
import dataclasses
import json
import pickle
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PosixPath
from typing import Any

from ijepa.errors import UserError, program, run_command
from ijepa.released.layouts import FOLDERS, LAYOUTS, TOWERS


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(prog=program("ijepa.checkpoint"), description=__doc__)
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

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ijepa.architecture import Variant, ViTConfig
from ijepa.config import RunConfig, as_plain
from ijepa.encoder_file import encoder_digest, read_header
from ijepa.files import digest, written_whole
from ijepa.provenance import here
from ijepa.released import convert as released
from ijepa.released import folder
from ijepa.released.card import results_of
from ijepa.released.hub import push
from ijepa.vit import ViT

TORN = (RuntimeError, OSError, EOFError, KeyError, ValueError, pickle.UnpicklingError)
"""Errors that torch raises for a file that was cut off, or that holds something else."""
GARBLED = (*TORN, AssertionError, AttributeError, IndexError, TypeError, struct.error)
"""Errors that torch raises for a file in which bytes were changed, those of TORN included."""
SCALAR, ARRAY = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
VALUES: list[Any] = [
    argparse.Namespace, PosixPath, np.ndarray, np.dtype, SCALAR, ARRAY, _codecs.encode,
    (SCALAR, "numpy.core.multiarray.scalar"), (ARRAY, "numpy.core.multiarray._reconstruct"),
    *{type(np.dtype(code)) for code in "?SUbhilqBHILQefdg"},
]  # fmt: skip
"""Types that only hold values, which trainings save beside their weights: arguments, metrics."""
WRAPPERS = re.compile(
    r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|"
    r"base_model\.model)\."
)
"""Parts of names that others put before a module's own: torch.compile, FSDP, activation
checkpoints, Lightning around DeepSpeed, PEFT."""


def save(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write the state after ``step`` updates, whole or not at all."""
    write(path, state_of(method, optimizer, step))


def state_of(method: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    """State after ``step`` updates; its tensors are the run's own."""
    return {"step": step, "method": method.state_dict(), "optimizer": optimizer.state_dict()}


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a state as a checkpoint, whole or not at all."""
    try:
        with written_whole(path) as part:
            torch.save(state, part)
    except RuntimeError as error:  # torch's writer gives no reason; usually the disk is full
        raise cannot_be_written(path, error) from None


def resume(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load a checkpoint and return its number of updates; 0 if there is no checkpoint.

    A checkpoint that cannot be read is an error: a run never starts from the beginning by itself.
    """
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        step, weights, moments = int(state["step"]), state["method"], state["optimizer"]
    except PermissionError:
        raise
    except TORN as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__} {str(error).partition(chr(10))[0]}): "
            "restore it, "
            "or delete it to start this run from the beginning"
        ) from None
    try:
        method.load_state_dict(weights)
        optimizer.load_state_dict(moments)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{path} was made by other code, or for another network "
            f"({str(error).partition(chr(10))[0]}): go on with the code that made it, "
            "or move it away to start this run from the beginning"
        ) from None
    return step


def save_encoder(path: Path, encoder: ViT, run: RunConfig, facts: dict[str, Any]) -> None:
    """Write an encoder as safetensors; its header holds the run's configuration and ``facts``."""
    about = {
        "run": as_plain(run),
        "variant": dataclasses.asdict(encoder.variant),
        "facts": {**facts, **here()},
    }
    weights = {name: value.contiguous().cpu() for name, value in encoder.state_dict().items()}
    save_tensors(path, weights, about)


def save_tensors(
    path: Path,
    tensors: dict[str, Tensor],
    about: dict[str, Any],
    replace: bool = True,
    key: str = "ijepa",
) -> None:
    """Write tensors as safetensors with a header under ``key``, whole or not at all.

    If ``replace`` is false, a file with other content at ``path`` is an error.
    """
    try:
        with written_whole(path) as part:
            save_file(tensors, part, metadata={key: json.dumps(about)})
            may_replace(path, part, replace)
    except SafetensorError as error:
        raise cannot_be_written(path, error) from None


def may_replace(path: Path, part: Path, replace: bool) -> None:
    """Raise UserError if ``path`` is a folder or, unless ``replace``, differs from ``part``."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file")
    if not replace and path.exists() and digest(path) != digest(part):
        raise UserError(f"{path} exists and is another file: move it away, or say --force")


def cannot_be_written(path: Path, error: Exception) -> UserError:
    """UserError for a file that a library failed to write."""
    reason = str(error).splitlines()[0]
    return UserError(
        f"{path} cannot be written ({reason}): if the disk is full, free some space, then run the "
        "same command again; what is finished is kept"
    )


def load_encoder(path: Path) -> tuple[ViT, dict[str, Any]]:
    """Encoder in evaluation mode, and its header: ``run`` and ``facts``."""
    about = read_header(path)
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    encoder = ViT(ViTConfig(**about["run"]["vit"]), Variant(**about.get("variant", {})))
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit its own header: {error}") from None
    return encoder.eval(), about


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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a torch or safetensors file, named by its path through the dictionaries.

    No code in a file is ever run. Raises UserError if the file holds code, or is of another kind.
    """
    if not path.is_file():
        raise UserError(f"{path} is {'a folder' if path.exists() else 'missing'}: name a file")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty: get it again")
    if ours(path):
        raise UserError(f"{path} is a file of this project already: use it as it is")
    try:
        if is_safetensors(path):
            with safe_open(path, framework="pt") as file:
                content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return dict(flattened(content))
        with torch.serialization.safe_globals(VALUES):
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except (SafetensorError, *GARBLED) as error:
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} holds code ({code[1]}), which is not run: get a file of tensors only"
            ) from None
        # torch's first line may advise the user to run the code: leave it out.
        reason = str(error).split("WeightsUnpickler error: ")[-1].strip().partition("\n")[0]
        raise UserError(
            f"{path} is damaged, or is no file of torch or safetensors ({reason}): get it again"
        ) from None
    return dict(flattened(content))


def is_safetensors(path: Path) -> bool:
    """True if a file begins as safetensors do, whatever its name: its header's length, then {."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size


def flattened(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors in nested dictionaries and lists, with their paths without WRAPPERS."""
    if isinstance(value, Tensor):
        yield WRAPPERS.sub("", name), value
    elif isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flattened(item, f"{name}.{key}" if name else str(key))


def ours(path: Path) -> dict[str, Any]:
    """Header of an encoder of this project; empty for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {}).get("ijepa", "{}"))
            return about if "run" in about else {}
    except (SafetensorError, OSError, json.JSONDecodeError):
        return {}


def main() -> None:
    """Entry point of the command line."""
    options = vars(parser().parse_args())
    action, file = options.pop("command"), options.pop("file")
    if action == "import":
        keep = options.pop("keep")
        import_encoder(file, **options)
        if keep == "whole":
            from ijepa.imported import import_whole  # not at the top: it needs this module

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
