"""Writes the report of a sweep again, also of one that still runs, and prints its table.

    python -m experiments.report --results=results/wall-small

Into the folder go report.html, pictures/*.png, table.csv and table.md.
"""

from absl import flags

from wmq_jax import cli
from wmq_jax.analysis import load_results, write_report

_RESULTS = flags.DEFINE_string("results", None, "Results folder of a sweep (its --workdir).", required=True)


def main() -> None:
    """Reads, writes, prints."""
    with cli.one_sentence_errors():
        load_results(_RESULTS.value)
    # What else fails from here on is not the user's doing and keeps its traceback.
    with cli.one_sentence_errors(OSError):
        summary = write_report(_RESULTS.value)
    print(summary.table)
    if summary.headline != summary.table:  # it is, without a finished cell
        print(f"\n{summary.headline}")
    print(summary.report)


if __name__ == "__main__":
    cli.run(main)
