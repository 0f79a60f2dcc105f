"""Fail unless what was made is what the config asks for now."""

from evals.audit import check
from ijepa.errors import in_one_line

with in_one_line():
    check(snakemake.params.expected)  # type: ignore[name-defined]  # noqa: F821
