"""Fail unless what was made is what the config asks for now."""

from ijepa.errors import in_one_line
from workflow.plan.audit import check

with in_one_line():
    check(snakemake.params.expected)  # type: ignore[name-defined]  # noqa: F821
