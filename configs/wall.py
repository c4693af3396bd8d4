"""Which bit-widths does a world model plan with? The Wall task of DINO-WM.

    python -m experiments.sweep --config=configs/wall.py:small

plans with 11 variants of the bundled model on 48 episodes. On two cores of a 2026 server CPU, without a GPU, it takes
less than five minutes; expect full precision near 98 % after 5 MPC iterations, 4-bit weights near 80 % and 3-bit
weights near 10 %.

    python -m experiments.sweep --config=configs/wall.py

is the protocol of the study (arXiv 2602.02110): 300 samples, 30 elites, 10 steps, 50 episodes;
`--config.checkpoint=FOLDER` names another model.

    python -m experiments.sweep --config=configs/wall.py:methods

compares the five methods of the study at 3, 4, 6 and 8 bits, with and without groups, with activations in floating
point, per tensor and per token, and with encoder and predictor apart: 91 variants on the episodes of 'small', by a
planner that takes twice as long.
"""

import ml_collections

MODES = ("study", "small", "methods")

# Of CEM, where they are not the study's.
PLANNERS = {
    "small": dict(samples=40, elites=3, steps=7),
    "methods": dict(samples=64, elites=4, steps=8),
}

# Bit-widths, granularities and modules of the study, by round-to-nearest.
VARIANTS = "fp w8 w6 w4 w4g32 w3 w8a8-tensor w8a8-token w4a8-token encoder=w4 predictor=w4"

METHODS = ("rtn", "omse", "smoothquant", "awq", "omniquant")
BITS = (8, 6, 4, 3)


def method_variants(group: int = 32) -> str:
    """The five methods at the study's bits: weights alone, in groups, with activations, and modules apart at 4 and 3.

    Args:
      group: size of the groups. The study's 128 divides no width of the bundled model (64, 96, 256); 32 is the largest
        that divides them all. `configs/wall_official.py:methods` has 128.
    """
    texts = ["fp"]
    for method in METHODS:
        for bits in BITS:
            texts += [f"{method}:w{bits}", f"{method}:w{bits}g{group}"]
        texts += [f"{method}:w{w}a{a}-{kind}" for w, a in ((8, 8), (6, 6), (4, 8)) for kind in ("tensor", "token")]
        texts += [f"{module}={method}:w{bits}" for module in ("encoder", "predictor") for bits in (4, 3)]
    return " ".join(texts)


def get_config(mode: str = "study") -> ml_collections.ConfigDict:
    """The configuration of a mode: 'study' (the full protocol), 'small' (minutes) or 'methods' (every one)."""
    if mode not in MODES:
        raise ValueError(f"configs/wall.py has the modes {', '.join(MODES)}, not {mode!r}")
    config = ml_collections.ConfigDict()
    config.name = f"wall-{mode}"
    config.checkpoint = "bundled"  # or the folder of a checkpoint, or a published run (outputs.zip/wall_single)
    # Of a published run: DINOv2's weights (.pth or .safetensors), which of its checkpoints, attention heads of a
    # backbone of unpublished width, and checksums that files must have, separated by commas.
    config.official = dict(backbone="", epoch="latest", encoder_heads=0, sha256="")
    config.dataset = ""  # official data set, folder or zip file: statistics that a converted model lacks, real episodes
    config.env = dict(name="wall", door_y=10, wall_x=32)
    config.variants = VARIANTS
    # What the names of methods leave open, for all variants (wmq_jax.quantized.MethodSettings says more).
    config.methods = dict(
        smoothquant_alpha=0.5,
        awq_scaled=".*fc1",  # which pairs, by their first consumer: the study's; '.*' is the original AWQ
        omniquant_alpha=0.5,
        omniquant_epochs=20,
        omniquant_batch=4,
        omniquant_transform_rate=5e-3,
        omniquant_clipping_rate=1e-2,
        released=False,  # with the quirks of the study's code, to compare with its numbers
    )
    config.planner = dict(
        optimizer="cem",  # or gd
        horizons="5",  # model actions; several, such as '3 5', are compared in the same program
        executed=0,  # model actions executed per MPC iteration; 0: all that were planned
        iterations=5,  # MPC iterations at the most
        seeds="0",  # of CEM's noise; several, such as '0 1 2', are compared
        samples=300,
        elites=30,
        steps=10,
        init_std=1.0,
        check_every=0,  # the published planner asks the simulator after every step whether it may stop: 1
        learning_rate=1.0,  # of gd
        step_noise=0.003,  # of gd
        objective="last",  # or all
        alpha=1.0,
        base=2.0,
    )
    # Starts and goals: random states, or dset: stretches of `goal_horizon` model actions of the data set's validation
    # trajectories.
    config.episodes = dict(count=50, base_seed=99, goal_source="random_state", goal_horizon=5)
    # Of the static activation ranges: what the full-precision planner considers on its own episodes, or dataset: real
    # episodes, `samples` stretches of `horizon` model actions of each.
    config.calibration_source = "planner"
    config.calibration = dict(episodes=4, iterations=3, samples=8, seed=0, horizon=5)
    config.engine = dict(tile=0, tiles_per_call=4, devices=0, noise_floor_tile=0)
    config.references = True
    config.pictures = 4
    if mode == "methods":
        config.variants = method_variants()
    if mode in PLANNERS:
        config.episodes.count = 48
        config.planner.update(PLANNERS[mode])
    return config
