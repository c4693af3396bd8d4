"""What planning costs, as ratios within one run: the rollout's savings, the sweep against a loop, utilisation."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from experiments.benchmarks.common import medians, random_params

SIZES = ("bundled", "official", "tiny")


class Setup:
    """A model and what is needed to plan with it; random weights where none are given."""

    def __init__(self, config: Mapping[str, Any], model, params=None, normalizer=None, samples: int | None = None):
        import numpy as np

        from wmq_jax.data import Normalizer
        from wmq_jax.models import WorldModel

        self.config, self.model = config, model
        self.module = WorldModel(model)
        self.params = random_params(model) if params is None else params
        ones = np.ones(2, np.float32)
        self.normalizer = normalizer or Normalizer(0 * ones, ones, 32 * ones, 15 * ones)
        self.planner = dict(config["planner"])
        if samples:
            self.planner |= dict(samples=samples, elites=max(2, samples // 8))

    def problem(self, apply):
        """The Wall problem for one way of applying the model; no episode ends before its last iteration."""
        from wmq_jax.envs import make_env
        from wmq_jax.planning import CEMConfig, MPCConfig, Problem, make_objective, world_model

        return Problem(
            model=world_model(self.model, apply, self.normalizer),
            env=make_env("wall", image_size=self.model.image_size),
            objective=make_objective(),
            config=MPCConfig(
                planner=CEMConfig(**self.planner), iterations=1, horizon=self.config["rollout"]["horizon"]
            ),
            normalizer=self.normalizer,
            frameskip=self.model.frameskip,
        )

    def engine(self, variants: int, tile: int = 0, kinds=("fp", "w4", "w8a8-token", "w3")):
        """A compiled engine over ``variants`` copies, one of each kind in turn, and the seconds that compiling took."""
        from wmq_jax import quantized as q
        from wmq_jax.sweep import cell_mesh, compile_engine, make_manifest

        specs = [q.parse_variant(kinds[n % len(kinds)]) for n in range(variants)]
        apply = q.quantized_apply(self.module)
        table = q.build_variants(self.model, self.params, specs)
        problem = self.problem(apply)
        mesh = cell_mesh()
        manifest = make_manifest(problem.env, "development", spread_evenly(self.config["cells"], mesh.size), 99)
        began = time.perf_counter()
        engine = compile_engine(problem, table, manifest, mesh, tile or self.config["tile"] or 1)
        return engine, time.perf_counter() - began


def spread_evenly(count: int, devices: int) -> int:
    """The next number of episodes that devices share evenly; at least one each."""
    return max(1, -(-count // devices)) * devices


def plan_cells(engine, cells) -> dict[Any, Any]:
    """Runs cells to their end; cell -> record of its only iteration."""
    from wmq_jax.sweep import run_cells

    return {done.cell: done.records[0] for call in run_cells(engine, cells) for done in call.finished}


def rollout_savings(setup: Setup) -> dict[str, float]:
    """Seconds of an imagined rollout: the plain one, then with each exact saving added, and their ratios to plain."""
    import jax
    import jax.numpy as jnp

    from wmq_jax.models import imagine
    from wmq_jax.models.layout import join

    model, module, variables = setup.model, setup.module, {"params": setup.params}
    samples, horizon = setup.config["rollout"]["samples"], setup.config["rollout"]["horizon"]
    actions = jax.random.normal(jax.random.key(0), (samples, horizon, model.action_dim))
    image = jnp.zeros((1, 1, model.image_size, model.image_size, 3))
    proprio = jnp.zeros((1, 1, model.proprio_dim))

    def windows(variables, actions, method):
        """Every step computes its whole window; the observation is encoded once."""
        latent = module.apply(variables, image, proprio, method="encode_obs")
        latent = jax.tree.map(lambda x: jnp.broadcast_to(x[0, 0], (samples, *x.shape[2:])), latent)
        frame = join(model, latent, jnp.zeros((samples, model.action_emb_dim)))
        frames = []
        for t in range(horizon):
            frames.append(module.apply(variables, frame, actions[:, t], method="replace_actions"))
            window = jnp.stack(frames[-model.num_hist :], axis=1)
            out = module.apply(variables, window, method=method)
            frame = out[:, -1] if method == "predict" else out
        return frame

    def plain(variables, actions):
        repeat = lambda x: jnp.broadcast_to(x, (samples, *x.shape[1:]))
        return module.apply(variables, repeat(image), repeat(proprio), actions, method="rollout").visual[:, -1]

    def reuse(variables, actions):
        latent = module.apply(variables, image, proprio, method="encode_obs")
        latent = jax.tree.map(lambda x: x[0, 0], latent)
        return imagine(module.apply, model, variables, latent, actions).visual

    functions = {
        "plain": plain,
        "observation encoded once": lambda v, a: windows(v, a, "predict"),
        "and the last layer for one frame": lambda v, a: windows(v, a, "predict_last"),
        "and keys and values reused": reuse,
    }
    compiled = {name: jax.jit(function) for name, function in functions.items()}
    seconds = medians(setup.config["repeats"], {n: (lambda f=f: f(variables, actions)) for n, f in compiled.items()})
    return {f"{name} (ratio to plain)": seconds["plain"] / value for name, value in seconds.items()} | {
        "plain seconds": seconds["plain"]
    }


def against_a_loop(setup: Setup, variants: int) -> dict[str, float]:
    """A Python loop over variants around one jitted planner without quantizers, against the compiled sweep.

    The loop's episodes are spread over all devices, a quarter of the config's cells or what devices share evenly.
    """
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from wmq_jax.planning import episode_key, mpc_init, mpc_iteration, step_noise
    from wmq_jax.sweep import all_cells

    engine, compile_seconds = setup.engine(variants)
    problem = setup.problem(setup.module.apply)
    count = spread_evenly(setup.config["cells"] // 4, engine.spread.mesh.size)
    cells = list(all_cells(variants, [0], [problem.config.horizon], count))

    @jax.jit
    def plan_episodes(params, init, goal, seed):
        def one(init, goal, seed):
            noise = step_noise(problem, episode_key(0, seed), 0)
            state = mpc_init(problem, init)
            return mpc_iteration(problem, {"params": params}, state, goal, noise, problem.config.horizon)[1].distance

        return jax.vmap(one)(init, goal, seed)

    spread = NamedSharding(engine.spread.mesh, PartitionSpec(*engine.spread.mesh.axis_names))
    episodes = [jax.device_put(jax.device_get(x[:count]), spread) for x in engine.episodes]
    rows = [jax.tree.map(lambda x: x[v], engine.table["params"]) for v in range(variants)]
    began = time.perf_counter()
    jax.block_until_ready(plan_episodes(rows[0], *episodes))
    loop_compile = time.perf_counter() - began
    seconds = medians(
        setup.config["repeats"],
        {
            "loop": lambda: [plan_episodes(row, *episodes) for row in rows],
            "sweep": lambda: [record.distance for record in plan_cells(engine, cells).values()],
        },
    )
    return {
        "loop seconds over sweep seconds": seconds["loop"] / seconds["sweep"],
        "episode-plans per second of the sweep": len(cells) / seconds["sweep"],
        "compile seconds of the sweep": compile_seconds,
        "compile and first call seconds of the loop": loop_compile,
    }


def growth(setup: Setup) -> dict[str, float]:
    """Cost per cell as the number of variants grows, relative to one; as many cells, all of one kind, each time."""
    from wmq_jax.sweep import all_cells

    counts = setup.config["variants"]
    engines = {count: setup.engine(count, kinds=("w4",))[0] for count in counts}
    horizon = setup.config["rollout"]["horizon"]

    def run(count):
        cells = list(all_cells(count, [0], [horizon], setup.config["cells"]))
        stride = len(cells) // setup.config["cells"]
        return [record.distance for record in plan_cells(engines[count], cells[::stride]).values()]

    seconds = medians(setup.config["repeats"], {str(c): (lambda c=c: run(c)) for c in counts})
    return {f"{count} variants": seconds[str(count)] / seconds[str(counts[0])] for count in counts}


def idle_cost(setup: Setup) -> dict[str, float]:
    """Time of a call with every second tile idle over one with all busy: half where idle tiles cost nothing."""
    import jax

    from wmq_jax.sweep.engine import empty_work

    engine, _ = setup.engine(1)
    work = empty_work(engine.problem, engine.tiles, engine.tile)
    busy, half = (jax.tree.map(lambda x: x.copy(), work) for _ in range(2))
    busy.active[:], half.active[::2] = True, True
    seconds = medians(setup.config["repeats"], {"busy": lambda: engine(busy)[1], "half": lambda: engine(half)[1]})
    return {"half idle over busy": seconds["half"] / seconds["busy"]}


def tiles(setup: Setup) -> dict[str, float]:
    """Plans per second of full precision and of W8A8 per-token, by the number of cells planned together."""
    from wmq_jax.sweep import all_cells

    figures, horizon = {}, setup.config["rollout"]["horizon"]
    for tile in setup.config["tiles"]:
        count = min(setup.config["cells"], 8 * tile)
        engine, _ = setup.engine(2, tile, kinds=("fp", "w8a8-token"))
        cells = {v: list(all_cells(2, [0], [horizon], count))[v * count : (v + 1) * count] for v in range(2)}
        run = lambda v, engine=engine, cells=cells: list(plan_cells(engine, cells[v]).values())
        seconds = medians(setup.config["repeats"], {"FP32": lambda: run(0), "W8A8 per-token": lambda: run(1)})
        figures |= {f"{name}, tile {tile}": count / value for name, value in seconds.items()}
    return figures


def noise_floor(setup: Setup) -> dict[str, float]:
    """Share of cells whose chosen plan differs visibly (by 1e-3 standard deviations) at another tile size, per kind."""
    import numpy as np

    from wmq_jax.sweep import all_cells

    kinds = 4
    horizon, count = setup.config["rollout"]["horizon"], setup.config["cells"]
    cells = list(all_cells(kinds, [0], [horizon], count))
    tiles = (setup.config["tile"] or 1, setup.config["noise_tile"])
    first, second = (plan_cells(setup.engine(kinds, tile)[0], cells) for tile in tiles)
    gap = {cell: np.abs(first[cell].actions - second[cell].actions).max() for cell in cells}
    names = ("FP32", "W4", "W8A8 per-token", "W3")
    return {
        f"{names[v]}, tiles {tiles[0]} and {tiles[1]}": float(
            np.mean([g > 1e-3 for c, g in gap.items() if c.variant == v])
        )
        for v in range(kinds)
    }


def plan_flops(setup: Setup) -> float:
    """Matrix-product FLOPs of the predictor in one CEM plan, with the exact savings.

    The encoder sees two images a plan, against hundreds of samples times steps in the predictor, and is not counted.
    """
    model, predictor = setup.model, setup.model.predictor
    width, inner = model.predictor_dim, predictor.heads * predictor.dim_head
    tokens, total = model.tokens_per_frame, 0.0
    for step in range(1, setup.config["rollout"]["horizon"] + 1):
        window = min(step, model.num_hist)
        fresh = 1 if step <= model.num_hist else window
        for layer in range(predictor.depth):
            last = layer == predictor.depth - 1
            read = 1 if last else fresh
            total += 2 * tokens * fresh * width * 3 * inner
            total += 2 * tokens * read * (inner * width + 2 * width * predictor.mlp_dim)
            total += 4 * tokens**2 * read * window * inner
    return total * setup.planner["samples"] * setup.planner["steps"]


def utilisation(setup: Setup, precision: str) -> dict[str, float]:
    """Plans per second and model FLOP utilisation against a large matrix product of the same precision."""
    import jax

    from wmq_jax.sweep import all_cells
    from wmq_jax.sweep.memory import Weights, choose_tile

    side, count = setup.config["matmul"], setup.config["cells"]
    a = jax.random.normal(jax.random.key(0), (side, side))
    problem = setup.problem(setup.module.apply)
    tile, _ = choose_tile(setup.model, problem.config, Weights(1, 0), False, requested=setup.config["tile"])
    with jax.default_matmul_precision(precision):
        product = jax.jit(lambda a: a @ a)
        engine, compile_seconds = setup.engine(1, tile)
        cells = list(all_cells(1, [0], [problem.config.horizon], count))
        seconds = medians(
            setup.config["repeats"],
            {"product": lambda: product(a), "plans": lambda: list(plan_cells(engine, cells).values())},
        )
    peak, flops = 2 * side**3 / seconds["product"], plan_flops(setup) * count / seconds["plans"]
    return {
        "plans per second": count / seconds["plans"],
        "TFLOP/s of planning": flops / 1e12,
        "TFLOP/s of a large product on one device": peak / 1e12,
        "utilisation": flops / (peak * jax.local_device_count()),
        "compile seconds": compile_seconds,
        "tile": tile,
    }


def widened(model, factor: int):
    """The model with every width multiplied."""
    predictor = model.predictor
    return model.replace(
        encoder=model.encoder.replace(
            width=model.encoder.width * factor,
            mlp_dim=model.encoder.mlp_dim * factor,
            heads=model.encoder.heads * factor,
        ),
        predictor=predictor.replace(heads=predictor.heads * factor, mlp_dim=predictor.mlp_dim * factor),
        proprio_emb_dim=model.proprio_emb_dim * factor,
        action_emb_dim=model.action_emb_dim * factor,
    )


def main_setup(config: Mapping[str, Any]) -> Setup:
    """The bundled model, or one of random weights and history 3.

    Raises:
      ValueError: there is no such size.
    """
    from experiments.benchmarks.methods import model_config
    from wmq_jax.checkpoints.native import bundled_model_path, load_model

    if config["size"] not in SIZES:
        raise ValueError(f"--config.size must be one of {', '.join(SIZES)}, not {config['size']!r}")
    if config["size"] != "bundled":
        return Setup(config, model_config(config["size"]).replace(num_hist=3))
    checkpoint = load_model(bundled_model_path())
    weights = {name: part for name, part in checkpoint.params.items() if name != "decoder"}
    return Setup(config, checkpoint.config, weights, checkpoint.normalizer)


def sections(config: Mapping[str, Any]) -> dict[str, Callable[[], dict[str, float]]]:
    """What is measured, by title.

    Raises:
      ValueError: there is no such size.
    """
    from wmq_jax.runtime.devices import configure

    configure()
    main = main_setup(config)
    model = main.model
    parts = {
        f"rollout, history {model.num_hist}": lambda: rollout_savings(main),
        "Python loop over variants": lambda: against_a_loop(main, config["loop_variants"]),
        "cost per cell as variants grow": lambda: growth(main),
        "idle tiles": lambda: idle_cost(main),
        "numerical-noise floor": lambda: noise_floor(main),
        "plans per second by tile": lambda: tiles(main),
    }
    for precision in config["precisions"]:
        parts[f"utilisation, {precision}"] = lambda precision=precision: utilisation(main, precision)
    if model.num_hist != 3:
        parts["rollout, history 3"] = lambda: rollout_savings(Setup(config, model.replace(num_hist=3)))
    if config["wide"]:
        wide = Setup(
            config | {"cells": config["wide_cells"]}, widened(model, config["wide"]), samples=config["wide_samples"]
        )
        parts[f"cost per cell as variants grow, {config['wide']} times wider"] = lambda: growth(wide)
    return parts
