"""What a run shows: tables in the terminal, Markdown, JSON, and one HTML file that stands alone.

    read_run(folder) -> RunResults           results.json, run.json and the manifests, as values
    matrix_table(run), comparison_table(runs) -> what rich prints
    make_report(folders) -> Report            terminal, markdown and html draw it
    write_html(folders, out)                  the page

Importing this loads no torch; `write_html` and `make_report` load it to look into W_past.
"""

from __future__ import annotations

from ella_cli.report.report_files import (
    Report,
    comparison_table,
    make_report,
    matrix_table,
    write_html,
)
from ella_cli.report.results import RunResults, read_run

__all__ = [
    "Report",
    "RunResults",
    "comparison_table",
    "make_report",
    "matrix_table",
    "read_run",
    "write_html",
]
