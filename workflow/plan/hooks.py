"""Two moments of a Snakemake: it plans when it reads its rules, and checks before its first job.

``workflow`` is the object of this name in every Snakefile.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.utils import available_cpu_count

from ijepa.cores import usable_cores
from ijepa.errors import UserError
from workflow.plan import session, slurm_preparation
from workflow.plan.grid import Grid

HELD = ExitStack()
"""Lock of the folder, from the first job until this process ends."""


@contextmanager
def errors_of_snakemake() -> Iterator[None]:
    """Turn an error of the user's into one that Snakemake shows without a traceback."""
    try:
        yield
    except UserError as error:
        raise WorkflowError(str(error)) from None


@errors_of_snakemake()
def planned(workflow: Any, config: dict[str, Any]) -> tuple[Grid, list[str]]:
    """The plan of a config, and the files that the user must bring for it, a line each."""
    session.name_the_user()
    # "cores: all" are those of the machine, also in a container with a quota below. A number may be
    # meant for a cluster's nodes, which have nothing to do with this machine, their login node.
    all_cores = workflow.cores == available_cpu_count()
    cores = usable_cores() if all_cores else workflow.cores
    grid = session.plan(dict(config), workflow.configfiles, cores)
    resources = workflow.resource_settings
    session.take_names_as_they_are(resources._parsed_default_resources)
    for of_a_rule in resources._parsed_overwrite_resources.values():
        session.take_names_as_they_are(of_a_rule)
    if not workflow.is_main_process:
        return grid, []
    grid.write_plan()  # not before the first job: --no-hooks leaves that out
    logger.info(grid.grouped())
    for path in grid.forget_incomplete():
        logger.warning(f"{path} is gone: it is made again")
    # A warning while the plan is made; an error before the first job.
    if missing := session.missing_files(grid):
        logger.warning("\n".join(["Files that you must bring:", *missing]))
    return grid, missing


@errors_of_snakemake()
def before_first_job(workflow: Any, grid: Grid, missing: list[str]) -> None:
    """Hold this folder against a second workflow, and refuse what would fail after hours."""
    HELD.enter_context(session.hold())
    slurm_preparation.prepare(workflow, grid)
    if missing:
        remedy = "Or say in the config's `raw:` where they lie."
        raise UserError("\n".join(["Files that you must bring:", *missing, remedy]))
    # Every value of every run and evaluation: a typo must not show up after hours of training.
    session.run_module("workflow.plan.check", grid.config_plan)
    # It makes folders, so only once the config is right.
    session.check_folders(grid)
