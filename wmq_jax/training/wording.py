"""What a training run says of itself, for a person."""

from collections.abc import Mapping
from typing import Any

from wmq_jax.training.settings import TrainSettings


def describe_training(settings: TrainSettings, config: Mapping[str, Any], workdir: Any) -> str:
    """What will be trained, on what, and where, before it starts.

    Args:
      settings, config: of the run.
      workdir: its folder.
    """
    start = config["init"]["checkpoint"]
    walk = settings.data.walk
    generated = f"{settings.data.train} generated trajectories of {walk.steps} steps"
    lines = {
        "model": f"{start}, trained further" if start else "a new one",
        "data": f"{settings.data.train} trajectories of {config['dataset']}" if config["dataset"] else generated,
        "stages": _stages(settings),
        "seed": settings.seed,
        "workdir": workdir,
    }
    return "\n".join(f"{name:<10} {value}" for name, value in lines.items())


def _stages(settings: TrainSettings) -> str:
    """What a chunk of each stage is, as progress lines count them."""
    encoder, predictor, decoder = settings.encoder, settings.predictor, settings.decoder
    steps = {"encoder": encoder, "decoder": decoder} if encoder is not None else {"decoder": decoder}
    texts = {name: f"{x.steps} steps of {x.batch} frames in chunks of {x.chunk}" for name, x in steps.items()}
    passes = f"{predictor.passes} pass{'es' * (predictor.passes > 1)}"
    texts["predictor"] = f"{predictor.rounds} chunks, each {passes} over {predictor.shard} trajectories"
    return "; ".join(f"{name} {texts[name]}" for name in ("encoder", "predictor", "decoder") if name in texts)


def format_summary(summary: Mapping[str, Any]) -> str:
    """The figures of ``summary.json`` as text.

    Args:
      summary: what :func:`wmq_jax.training.train` returns.
    """
    numbers = lambda values: " ".join(f"{value:8.4f}" for value in values)
    minutes = ", ".join(f"{name} {stage['minutes']:.1f}" for name, stage in summary["stages"].items())
    lines = [f"minutes    {minutes}"]
    names = {"visual": "patches", "proprio": "proprioception"}
    for name, values in summary["validation"].items():
        shown = names[name.removeprefix("copy_")] + (", last frame copied" if name.startswith("copy_") else "")
        lines.append(f"error      {shown:<34} {numbers(values)}")
    plans = summary["development"]
    if plans:
        rates = " ".join(f"{rate:.0%}" for rate in plans["success"])
        lines.append(f"success    {rates} of {plans['episodes']} development episodes, after 1, 2, ... MPC iterations")
    return "\n".join(lines)
