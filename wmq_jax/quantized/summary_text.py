"""The figures of a quantized model as aligned text."""

from __future__ import annotations

from typing import Any


def format_summary(summary: dict[str, Any]) -> str:
    """The figures of ``summary.json`` for a terminal."""
    rows = [("site", "bits", "group", "scales", "SQNR dB", "bytes", "of float", "activations")]
    for entry in summary["sites"]:
        scale = entry["scale"]
        rows.append(
            (
                entry["site"],
                _or_dash(entry["bits"], "{}"),
                _or_dash(entry["group_size"], "{}"),
                "-" if scale is None else f"{scale[0]:.2e}..{scale[1]:.2e}",
                _or_dash(entry["sqnr_db"], "{:.1f}"),
                f"{entry['bytes']:,}",
                f"{entry['bytes'] / entry['float_bytes']:.1%}",
                _activations(entry["activations"]),
            )
        )
    blocks = [("block", "error of output", "round-to-nearest", "ratio")]
    for entry in summary["blocks"]:
        blocks.append((entry["block"], *(_interval(entry[kind]) for kind in ("error", "rtn", "ratio"))))
    sizes = [("part", "bytes", "of float")]
    for name, size in summary["bytes"].items():
        sizes.append((name, f"{size['bytes']:,}", f"{size['bytes'] / size['float_bytes']:.1%}"))
    tables = [rows, blocks, sizes] if summary["blocks"] else [rows, sizes]
    return "\n\n".join(map(_aligned, tables))


def _interval(estimate: dict[str, float]) -> str:
    return "{mean:.3g} ({low:.3g}..{high:.3g})".format(**estimate)


def _activations(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    grid = f" scale {entry['scale']:.2e} zero {entry['zero_point']}" if "scale" in entry else ""
    return f"{entry['bits']} per {entry['granularity']}{grid}"


def _or_dash(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)


def _aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])
