"""Write one cell of the grid as the file that its pretraining reads."""

from pathlib import Path

import yaml

Path(snakemake.output[0]).write_text(yaml.safe_dump(snakemake.params.run))  # type: ignore[name-defined]  # noqa: F821
