"""The official Wall protocol, for the published model and data set.

    python -m experiments.sweep --config=configs/wall_official.py --config.checkpoint=outputs.zip/wall_single \\
        --config.official.backbone=dinov2_vits14_pretrain.pth --config.dataset=wall_single.zip

takes them as they are; `experiments.convert` makes a checkpoint of the first two to keep.

Seed 99, 50 episodes whose starts and goals are random states (not taken from the data, which would be
`episodes.goal_source=dset`), horizon of 5 model actions of 5 steps, CEM with 300 samples, 30 elites and 10 steps, all 5
planned actions executed, the simulator asked after every step, objective of the last frame with alpha 1; 7 MPC
iterations. A GPU is needed: the model has 42 M parameters and 196 tokens a frame. The time has not been measured.

What papers report, as success on Wall:

| model | success | source |
|---|---|---|
| full precision | 0.96 | DINO-WM, arXiv 2411.04983 |
| full precision, 7 MPC iterations | 47 of 50 | reproduction |
| weights INT6 per channel | near full precision | arXiv 2602.11882, its two small budgets (below) |
| weights INT4 per channel | 0.07 to 0.20 | the same |
| weights INT4, encoder in full precision | 0.27 to 0.50 | the same |
| weights INT3 per channel | 0 | the same |

    python -m experiments.sweep --config=configs/wall_official.py:small --config.checkpoint=... --config.dataset=...

is a trial of minutes: 2 episodes, 16 samples, 2 steps. Its success says nothing.
`:methods` compares all five methods at 3, 4, 6 and 8 bits, in groups of 128, as the study does.

`:budget_a` and `:budget_b` have the sizes of those two budgets, as the configuration in that paper's repository states
them: goals are random states, CEM has 300 samples and 30 elites, and plans 9 model actions in 2 steps for 2 MPC
iterations (30 episodes), or 12 in 3 steps for 3 (20 episodes). The largest weight of a channel is code 2^(b-1) - 1
there and 2^(b-1) - 0.5 here, and their episodes were drawn by other seeds. So expect their order, not their numbers.
"""

import ml_collections

from configs import wall

MODES = ("official", "small", "methods", "budget_a", "budget_b")

# Model actions planned, CEM steps, MPC iterations and episodes of arXiv 2602.11882.
BUDGETS = {"budget_a": (9, 2, 2, 30), "budget_b": (12, 3, 3, 20)}

# The weight-only settings that papers report, and activations on top.
VARIANTS = "fp w8 w6 w4 predictor=w4 encoder=w4 w3 w8a8-tensor w8a8-token"


def get_config(mode: str = "official") -> ml_collections.ConfigDict:
    """The configuration of a mode: 'official', 'methods' (every method of the study), 'small' (a trial), or the budgets
    of another paper.
    """
    if mode not in MODES:
        raise ValueError(f"configs/wall_official.py has the modes {', '.join(MODES)}, not {mode!r}")
    config = wall.get_config("study")
    config.name = f"wall-{mode}-protocol"
    config.variants = VARIANTS
    config.planner.update(iterations=7, check_every=1)
    if mode == "methods":
        config.variants = wall.method_variants(group=128)
    if mode in BUDGETS:
        horizon, steps, iterations, episodes = BUDGETS[mode]
        config.variants = "fp w8 w6 w4 w3 predictor=w8 predictor=w6 predictor=w4 predictor=w3"
        config.planner.update(horizons=str(horizon), steps=steps, iterations=iterations)
        config.episodes.count = episodes
    if mode == "small":
        config.variants = "fp w4 w8a8-tensor"
        config.episodes.count = 2
        config.planner.update(samples=16, elites=4, steps=2, iterations=2)
        config.calibration = dict(episodes=2, iterations=1, samples=2, seed=0, horizon=5)
        config.references, config.pictures = False, 0
    return config
