"""Statistics, tables, plots and the HTML report of a sweep; reads results folders only.

`format_table(load_results(folder))` is the terminal table; `write_report(folder)` writes everything. matplotlib is
loaded when the first figure is drawn.
"""

from wmq_jax.analysis.report import Summary, write_report
from wmq_jax.analysis.results import Results, load_results
from wmq_jax.analysis.table import format_table

__all__ = ["Results", "Summary", "format_table", "load_results", "write_report"]
