"""A check's values as asv's result files of both commits."""

from __future__ import annotations

from pathlib import Path

from asv import machine as asv_machine
from asv import util

from gradmark.tracking.check.asv_results import Side, write_asv_results
from gradmark.tracking.check.repository import Project, commit_date_ms
from gradmark.tracking.check.results import Report
from gradmark.tracking.check.sides import BASE, HEAD
from gradmark.tracking.check.state import Check


def export(check: Check, report: Report, project: Project) -> list[Path]:
    """Write both sides into the results folder of asv.conf.json; returns the files.

    Uncommitted changes are no commit of asv's history: that side is left out.
    """
    name = asv_machine.Machine.get_unique_machine_name()
    facts = {**asv_machine.Machine.get_defaults(), "machine": name}
    written = []
    both: tuple[Side, ...] = (BASE, HEAD)
    for side in both:
        measured = check.sides[side]
        if measured.revision.uncommitted:
            continue
        written.append(
            write_asv_results(
                project.config.parent / str(measured.conf.results_dir),
                machine=name,
                machine_facts=facts,
                python=measured.python_version,
                # "existing: /usr/bin/python" would be a path.
                env_name=util.sanitize_filename(measured.environment),
                requirements=measured.requirements,
                report=report,
                side=side,
                commit_date_ms=commit_date_ms(project, measured.revision.commit),
                benchmarks=check.benchmarks,
            )
        )
    return written
