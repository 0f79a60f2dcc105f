"""Picture of a user's own image by a trained decoder."""

from pathlib import Path

import torch

from evals.decoder import blocks, pictures
from evals.decoder.model import load_decoder, read_about
from evals.decoder.sample import user_row
from evals.decoder.settings import Condition
from evals.decoder.source import Reconstructs, Source
from evals.picture import patches_of, read_image
from ijepa.data.transforms import centre_crop, normalise, to_array
from ijepa.encoder_file import encoder_digest
from ijepa.errors import UserError

TRAIN = "train one with: ijepa-bench evaluate decoder --encoder {} --data SHARDS --out FILE.json"


def draw(
    encoder: Path,
    image: Path,
    block: list[str],
    samples: int,
    seed: int,
    decoder: Path | None,
    out: Path,
) -> None:
    """Write the picture; the arguments are the options of the command line."""
    _, grid = patches_of(encoder, None)
    hidden = [blocks.parse(text, grid) for text in block]
    picture = read_image(image)
    path = decoder_of(encoder, block, decoder)
    drawing = load_decoder(path)
    source = Source(encoder, drawing.config.condition)
    if source.condition == "image" and block and not isinstance(source.method, Reconstructs):
        raise UserError(f"--block: {path} decodes whole images: leave it out, or name --decoder")
    if source.condition == "image" and not hidden:
        hidden = [source.centre()]
    vit = source.encoder.config
    view = torch.tensor(to_array(centre_crop(picture, source.size)))
    images = normalise(view[None], vit.mean, vit.std)
    row = user_row(drawing.to(source.device), source, images[0], hidden, samples, seed)
    pictures.write_picture(out, [row], source.grid)


def decoder_of(encoder: Path, block: list[str], path: Path | None) -> Path:
    """File of the decoder, checked to be of this encoder; without ``path`` the one in results.

    With blocks, a decoder of predictions is looked for first.
    """
    digest = encoder_digest(encoder)
    if path is not None:
        if (about := read_about(path))["encoder"] != digest:
            raise UserError(
                f"--decoder {path} is of encoder {about['encoder']}, {encoder} is {digest}: "
                + TRAIN.format(encoder)
            )
        conditions: dict[Condition, Path] = {about["settings"]["condition"]: path}
    else:
        conditions = in_results(encoder, digest)
    wanted: list[Condition] = ["prediction", "image"] if block else ["image"]
    for condition in wanted:
        if condition in conditions:
            return conditions[condition]
    if conditions:
        raise UserError(f"{next(iter(conditions.values()))} decodes blocks: say --block")
    raise UserError(f"{encoder} has no decoder in its results: " + TRAIN.format(encoder))


def in_results(encoder: Path, digest: str) -> dict[Condition, Path]:
    """Decoders of results/NAME/runs/RUN/SEED/encoder.safetensors, by their condition.

    They lie in results/NAME/evaluations/RUN/SEED.
    """
    run, seed = ("", "", *encoder.resolve().parts)[-3:-1]
    folder = encoder.resolve().parent / "../../../evaluations" / run / seed
    abouts = {path: read_about(path) for path in sorted(folder.glob("*.safetensors"))}
    return {
        about["settings"]["condition"]: path
        for path, about in abouts.items()
        if about["encoder"] == digest
    }
