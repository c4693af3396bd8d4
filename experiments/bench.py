"""Measures what the design promises.

    python -m experiments.bench --config=configs/bench.py:small --out=benchmarks/cpu.json

The config's ``kind`` chooses what: planning (the modes 'small' and 'official'), the methods of quantization at full
size ('methods'), the same methods against Qwix ('qwix'), or the reader of torch files ('reader').
"""

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from experiments import fields
from wmq_jax import cli

KINDS = ("against_qwix", "methods", "planning", "reader")

_OUT = flags.DEFINE_string("out", None, "JSON file for the figures, with device and versions; printed if not given.")


def environment(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the figures of this run belong to."""
    import jax

    from wmq_jax.runtime import provenance
    from wmq_jax.runtime.devices import available_cores

    return {
        **provenance.record(jax.local_device_count()),
        "machine": {"cpu": provenance.processor(), "cores": available_cores()},
        "config": json.loads(json.dumps(config)),
    }


def main(config: dict[str, Any]) -> None:
    """Runs every section and writes or prints the figures."""
    with cli.one_sentence_errors():
        out = Path(_OUT.value) if _OUT.value else None
        if out and not out.parent.is_dir():
            raise ValueError(f"--out={out}: there is no folder {out.parent}")
        if config["kind"] not in KINDS:
            raise ValueError(f"kind {config['kind']!r} is not one of {', '.join(KINDS)}")
        parts = importlib.import_module(f"experiments.benchmarks.{config['kind']}").sections(config)
        chosen = [title for title in parts if config["only"] in title]
        if not chosen:
            raise ValueError(f"--config.only={config['only']} is in none of the titles {', '.join(parts)}")

    from wmq_jax.io import write_json

    figures = environment(config)
    for title in chosen:
        print(f"{title} ...", file=sys.stderr, flush=True)
        figures[title] = {name: float(f"{value:.4g}") for name, value in parts[title]().items()}
        print("\n".join(f"  {name:<48} {value:>10.4g}" for name, value in figures[title].items()), flush=True)
        if out:
            write_json(out, figures)


if __name__ == "__main__":
    cli.run(main, config="configs/bench.py:small", fields=fields.BENCH)
