"""What experiments/bench.py measures.

    python -m experiments.bench --config=configs/bench.py:small --out=benchmarks/cpu.json  # 15 minutes, 2 cores
    python -m experiments.bench --config=configs/bench.py:official --out=benchmarks/gpu_official.json  # on a GPU
    python -m experiments.bench --config=configs/bench.py:gpu --out=benchmarks/gpu.json  # the bundled model on one
    python -m experiments.bench --config=configs/bench.py:methods --out=benchmarks/methods_cpu.json  # 9 to 13 minutes
    python -m experiments.bench --config=configs/bench.py:qwix --out=benchmarks/qwix.json  # 3 minutes
    python -m experiments.bench --config=configs/bench.py:reader --out=benchmarks/reader.json  # half a minute

'official' measures a model of the official size (ViT-S/14 at 196 pixels, six predictor layers of width 404, history 3)
with the study's planner, in float32, tf32 and bfloat16 matrix products against the peak of a large matrix product on
the same device.

'methods' times every method of quantization on the official model with 32 one-frame samples, each in a process of its
own; `--config.size=tiny` tries the same on a tiny one. 'qwix' compares ours with Qwix's on the bundled model
(`pip install '.[qwix]'`).

'reader' reads a generated checkpoint of 369 MB without torch; expect less than 10 s and 1.2 times its size in memory.
"""

import ml_collections

MODES = ("small", "official", "gpu", "methods", "qwix", "reader")


def get_config(mode: str = "small") -> ml_collections.ConfigDict:
    """The configuration of a mode."""
    if mode not in MODES:
        raise ValueError(f"configs/bench.py has the modes {', '.join(MODES)}, not {mode!r}")
    config = ml_collections.ConfigDict()
    config.name = f"bench-{mode}"
    config.only = ""  # the sections whose title has this in it; "" is all
    if mode == "methods":
        config.kind = "methods"
        config.size = "official"  # or 'tiny'
        config.methods = "rtn omse smoothquant awq omniquant"
        config.bits = "w4g128"
        return config
    if mode == "qwix":
        config.kind = "against_qwix"
        config.inputs = 32  # to calibrate with, and others to compare on
        return config
    if mode == "reader":
        config.kind = "reader"
        config.size = "official"  # or 'tiny'
        config.repeats = 5
        return config
    config.kind = "planning"
    config.size = "bundled"  # model: 'bundled', or 'official' or 'tiny' with random weights
    config.loop_variants = 12  # that a Python loop goes through
    config.repeats = 3  # of every timing; medians are reported
    config.rollout = dict(samples=64, horizon=5)
    config.planner = dict(samples=64, elites=8, steps=8)
    config.variants = (1, 2, 4, 8, 16)
    config.cells = 16  # planned per timing
    config.wide = 10  # how many times wider the second model is
    config.wide_samples, config.wide_cells = 4, 4
    config.noise_tile = 2
    config.tiles = (1, 2, 4)  # cells planned together, compared
    config.tile = 0
    config.precisions = ("float32",)
    config.matmul = 2048  # side of the matrices that measure the peak
    if mode == "official":
        config.size, config.loop_variants = "official", 2
        config.rollout.samples = 300
        config.planner = dict(samples=300, elites=30, steps=10)
        config.cells, config.repeats = 4, 2
        config.variants = (1, 4)
        config.wide = 0
    if mode == "gpu":
        config.cells = 1024
        config.tiles = (1, 8, 32, 64, 128)
        config.tile, config.noise_tile = 64, 32
        config.variants = (1, 4, 16)
        config.wide = 0
    if mode in ("official", "gpu"):
        config.precisions = ("float32", "TF32_TF32_F32", "BF16_BF16_F32")
        config.matmul = 8192
    return config
