"""From a results folder to `report.html`, `pictures/*.png`, `table.csv` and `table.md`."""

import dataclasses
from pathlib import Path

from wmq_jax.analysis.alignment import align, costs_agree
from wmq_jax.analysis.methods import compare_methods
from wmq_jax.analysis.narrative import report_html
from wmq_jax.analysis.pictures import draw_pictures
from wmq_jax.analysis.results import load_results
from wmq_jax.analysis.summary import Comparison, compare, headline, main_comparison
from wmq_jax.analysis.table import csv_table, format_table, markdown_methods, markdown_table
from wmq_jax.io import write_bytes, write_text


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `write_report` found and wrote.

    Attributes:
      headline: who survives, in a sentence.
      table: the terminal table.
      comparisons: one a horizon, ascending.
      report: path of report.html.
      files: every file written.
    """

    headline: str
    table: str
    comparisons: tuple[Comparison, ...]
    report: Path
    files: tuple[Path, ...]


def write_report(results_dir: str | Path) -> Summary:
    """Writes the report of a results folder, finished or not, into the folder.

    Args:
      results_dir: the results folder of a sweep.

    Returns:
      The Summary.

    Raises:
      FileNotFoundError, ValueError: see `load_results`.
      OSError: the folder cannot be written.
    """
    results = load_results(results_dir)
    comparisons = tuple(compare(results, horizon) for horizon in results.horizons)
    main = main_comparison(results)
    aligned = {}
    if main is not None:
        planner = results.protocol.get("config", {}).get("planner", {})
        rows = [row for row in results.rows if row.horizon == main.horizon]
        aligned = align(rows, costs_agree(planner, main.horizon))
    methods = [compare_methods(results, comparison) for comparison in comparisons]
    main_methods = methods[-1] if main else None
    pictures = tuple(draw_pictures(results, main, aligned, main_methods)) if main else ()
    report = results.folder / "report.html"
    texts = {
        results.folder / "table.csv": csv_table(comparisons),
        results.folder / "table.md": "\n".join(
            markdown_table(comparison) + (f"\n{markdown_methods(table)}" if table else "")
            for comparison, table in zip(comparisons, methods)
        ),
        report: report_html(results, comparisons, main, aligned, main_methods, pictures),
    }
    images = {results.folder / "pictures" / f"{picture.name}.png": picture.png for picture in pictures}
    (results.folder / "pictures").mkdir(exist_ok=True)
    for path, data in images.items():
        write_bytes(path, data)
    for path, text in texts.items():
        write_text(path, text)
    return Summary(headline(main), format_table(results), comparisons, report, (*images, *texts))
