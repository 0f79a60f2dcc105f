"""Snakemake's events as JSON, a line each, for the command that shows them (workflow.reproduce).

Snakemake finds a logger plugin by the name of its package; it is used with ``--logger events``, and
appends to the file that IJEPA_EVENTS names. Snakemake's own text goes where it always does.
"""

import json
import os
import time
from logging import LogRecord
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase

FIELDS = ("jobid", "job_id", "jobs", "rule_name", "wildcards", "log", "done", "total", "stats")


class LogHandler(LogHandlerBase):
    """Appends events to a file."""

    def __post_init__(self) -> None:
        self.file = open(os.environ["IJEPA_EVENTS"], "a", encoding="utf-8")  # noqa: SIM115, PTH123

    def emit(self, record: LogRecord) -> None:
        """Write one event, with those of its fields that are shown."""
        event = getattr(record, "event", None)
        if event is None:
            return
        content: dict[str, Any] = {"event": str(event), "time": time.time()}
        for field in FIELDS:
            if (value := getattr(record, field, None)) is not None:
                content[field] = value
        self.file.write(json.dumps(content, default=str) + "\n")
        self.file.flush()

    @property
    def writes_to_stream(self) -> bool:
        """False: the terminal is left to others."""
        return False

    @property
    def writes_to_file(self) -> bool:
        """False: Snakemake would name such a file at the end of a run."""
        return False

    @property
    def has_filter(self) -> bool:
        """True: it decides itself which events it writes."""
        return True

    @property
    def has_formatter(self) -> bool:
        """True: it writes JSON."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """False: jobs are shown, not rules."""
        return False
