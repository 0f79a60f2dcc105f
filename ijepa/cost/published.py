"""Reader of results/published/costs.csv: training times that papers and repositories report."""

import csv
from functools import cache

from ijepa.files import ROOT

COSTS = ROOT / "results" / "published" / "costs.csv"


@cache
def published_costs() -> list[dict[str, str]]:
    """Rows as text: method, arch, epochs, hardware, hours, gpu_hours, recipe, source."""
    with COSTS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
