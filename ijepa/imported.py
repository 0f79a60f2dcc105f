"""All networks of a published I-JEPA checkpoint, beside the encoder that was imported from it.

The decoder needs the predictor to show what is predicted (evals.decoder), and a run may start from
all of it.
"""

import re
from pathlib import Path

from ijepa.config import parse_run
from ijepa.encoder_file import read_header
from ijepa.errors import UserError
from ijepa.keep_and_start import Start
from ijepa.method import load_method
from ijepa.released.tensors import read_tensors
from ijepa.start import begin_from
from ijepa.whole import read_about, save_whole


def import_whole(source: Path, encoder: Path) -> None:
    """Write both towers and predictor of ``source`` to whole.safetensors beside ``encoder``.

    ``encoder`` is the target encoder that was imported from it. Positions are resampled to its
    image size, as its own were. Raises UserError for a file that lacks one of the networks.
    """
    header = read_header(encoder)
    origin = header["facts"]["released"]
    if (origin["layout"], origin["tower"]) != ("ijepa", "target"):
        raise UserError(
            f"--keep whole: {source} was read as {origin['layout']} {origin['tower'] or ''}, but "
            "only I-JEPA's layout with the target encoder has a predictor: leave --keep out"
        )
    raw = {
        "method": "ijepa",
        "dataset": "unknown",  # no checkpoint names it
        "vit": header["run"]["vit"],
        "recipe": predictor_sizes(source),
    }
    whole = encoder.with_name("whole.safetensors")
    if whole.exists() and "released" not in read_about(whole).get("facts", {}):
        raise UserError(f"{whole} is of another run: move it away, or name another folder in --out")
    run = parse_run(raw, str(source), checked=False)
    networks = load_method("ijepa").Method(run.recipe, run.vit)
    begin_from(Start(str(source), interpolate_positions=True), networks, "ijepa")
    facts = {"images_seen": None, "released": origin}
    save_whole(whole, networks, run, facts)


def predictor_sizes(source: Path) -> dict[str, int]:
    """Width and depth of a checkpoint's predictor; its heads are as many as the encoder's."""
    widths, blocks = set(), set()
    for name, value in read_tensors(source).items():
        if name.endswith("predictor_embed.weight"):
            widths.add(len(value))
        if match := re.search(r"predictor_blocks\.(\d+)\.", name):
            blocks.add(int(match[1]))
    if len(widths) != 1 or not blocks:
        raise UserError(
            f"--keep whole: {source} has no predictor: get the whole checkpoint, or leave --keep "
            "out"
        )
    return {"predictor_dim": widths.pop(), "predictor_depth": len(blocks)}
