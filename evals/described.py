"""PNG files that say in themselves what they show: the report needs to know no more of them.

Title and description are text chunks of the file, under PNG's own keywords.
"""

from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from ijepa.errors import UserError
from ijepa.files import written_whole

TITLE, DESCRIPTION = "Title", "Description"


class About(NamedTuple):
    """Title and description of a picture, "" if it has none, and its sides in pixels."""

    title: str
    description: str
    width: int
    height: int


def texts(title: str, description: str) -> dict[str, str]:
    """Text chunks of a file, by keyword, as matplotlib takes them."""
    return {TITLE: title, DESCRIPTION: description}


def write_described(path: Path, picture: Image.Image, title: str, description: str) -> None:
    """Write a PNG with its title and description, whole or not at all."""
    chunks = PngInfo()
    for keyword, text in texts(title, description).items():
        chunks.add_text(keyword, text)
    with written_whole(path) as part:
        picture.save(part, format="PNG", optimize=True, pnginfo=chunks)


def read_described(path: Path) -> About:
    """Title, description and size of a PNG; raises UserError for a file that is none."""
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            title, description = (str(picture.info.get(word, "")) for word in (TITLE, DESCRIPTION))
            return About(title, description, *picture.size)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(f"{path} is no PNG ({error}): make it again, or move it away") from None
