"""Synthetic results folders: the files a sweep writes, filled by a simple simulation of planners of varied skill."""

import json

import numpy as np
import pytest

# (name, spec, encoder (weight bits, group, act bits, granularity), predictor, bytes, skill of the planner in 0..1)
_VARIANTS = (
    ("FP32", "fp", (), (), 1_840_000, 0.62),
    ("W8", "w8", (8,), (8,), 490_000, 0.62),
    ("W6", "w6", (6,), (6,), 380_000, 0.60),
    ("W4", "w4", (4,), (4,), 268_000, 0.30),
    ("W4 g32", "w4g32", (4, 32), (4, 32), 297_000, 0.58),
    ("W3", "w3", (3,), (3,), 212_000, 0.08),
    ("W8A8 per-tensor", "w8a8-tensor", (8, None, 8, "tensor"), (8, None, 8, "tensor"), 490_000, 0.55),
    ("W8A8 per-token", "w8a8-token", (8, None, 8, "token"), (8, None, 8, "token"), 490_000, 0.61),
    ("W4A8 per-token", "w4a8-token", (4, None, 8, "token"), (4, None, 8, "token"), 268_000, 0.26),
    ("encoder W4", "encoder=w4", (4,), (), 1_340_000, 0.36),
    ("predictor W4", "predictor=w4", (), (4,), 790_000, 0.56),
)


def _module(weight_bits=None, group_size=None, act_bits=None, act_granularity=None):
    return {
        "weight_bits": weight_bits,
        "group_size": group_size,
        "act_bits": act_bits,
        "act_granularity": act_granularity,
        "method": "rtn" if weight_bits else None,
    }


def variant_entries(count=len(_VARIANTS)):
    """The first `count` entries of variants.json."""
    return [
        {"name": name, "spec": spec, "encoder": _module(*encoder), "predictor": _module(*predictor), "size_bytes": size}
        for name, spec, encoder, predictor, size, _ in _VARIANTS[:count]
    ]


def make_row(variant="FP32", episode=0, seed=0, horizon=5, success=(False, True), nonfinite=None, path=None):
    """A consistent row with the given outcome; costs and distances fall from iteration to iteration."""
    iterations = success.index(True) + 1 if True in success else len(success)
    falling = [round(2.0 - 0.3 * k + 0.01 * episode, 4) for k in range(iterations)]
    return {
        "variant": variant,
        "seed": seed,
        "horizon": horizon,
        "episode": episode,
        "iterations": iterations,
        "success": list(success),
        "predicted_cost": falling,
        "realised_cost": [1.1 * c for c in falling],
        "distance": [10 * c for c in falling],
        "initial_cost": 3.0,
        "initial_distance": 30.0,
        "nonfinite_iteration": nonfinite,
        "path": path or [[0.0, 0.0], [1.0, 2.0]],
    }


def _simulated_row(rng, name, skill, episode, seed, horizon, iterations, difficulty, start, goal):
    """A planner that comes closer by a random share of its skill; its predictions blur as the skill falls."""
    blur = 0.15 + 1.6 * (1 - skill) ** 2
    distance = initial = float(np.linalg.norm(goal - start))
    predicted, realised, distances, success, path = [], [], [], [], [start]
    for _ in range(iterations):
        share = np.clip(skill * 1.15 - 0.35 * difficulty + 0.22 * rng.normal(), -0.25, 0.97)
        distance = max(1.0, distance * (1 - share))
        cost = 0.02 * (distance / 10) ** 1.5 * np.exp(0.3 * blur * rng.normal())
        predicted.append(float(cost * np.exp(-0.5 * blur + 0.5 * blur * rng.normal())))
        realised.append(float(cost))
        distances.append(float(distance))
        for part in np.linspace(0, 1, horizon + 1)[1:]:
            anchor = goal + (start - goal) * distance / initial
            path.append(path[-1] + (anchor - path[-1]) * part + rng.normal(size=2))
        success.append(bool(distance < 4.5))
        if success[-1]:
            break
    executed = len(success)
    wild = 2 if 0 < skill < 0.1 and difficulty > 0.8 and executed > 1 else None
    return {
        "variant": name,
        "seed": seed,
        "horizon": horizon,
        "episode": episode,
        "iterations": executed,
        "success": success + [success[-1]] * (iterations - executed),
        "predicted_cost": predicted if wild is None else [predicted[0]] + [None] * (executed - 1),
        "realised_cost": realised,
        "distance": distances,
        "initial_cost": 0.02 * (initial / 10) ** 1.5,
        "initial_distance": initial,
        "nonfinite_iteration": wild,
        "path": np.round(path, 4).tolist(),
    }


def _simulate(episodes, seeds, horizons, iterations, names_and_skills, salt=0):
    world = np.random.default_rng(7)
    starts = np.stack([world.uniform(8, 25, episodes), world.uniform(8, 56, episodes)], axis=1)
    goals = np.stack([world.uniform(39, 56, episodes), world.uniform(8, 56, episodes)], axis=1)
    difficulty = world.uniform(size=episodes)
    rows = []
    for name, skill in names_and_skills:
        for seed in range(seeds):
            for horizon in horizons:
                for episode in range(episodes):
                    rng = np.random.default_rng([seed, horizon, episode, int(100 * abs(skill - 0.6)) // 4, salt])
                    rows.append(
                        _simulated_row(
                            rng,
                            name,
                            skill,
                            episode,
                            seed,
                            horizon,
                            iterations,
                            difficulty[episode],
                            starts[episode],
                            goals[episode],
                        )
                    )
    manifest = [
        {"episode": i, "seed": 99 + i, "init": s.tolist(), "goal": g.tolist()}
        for i, (s, g) in enumerate(zip(starts, goals))
    ]
    return rows, {"evaluation": manifest, "calibration": []}


def _picture(position):
    """A 65 x 65 room with a wall, a door, and a dot at (x, y)."""
    image = np.full((65, 65, 3), 255.0)
    image[:, 29:36] = 0
    image[6:15, 29:36] = 255
    for line in (4, 60):
        image[line, 4:61] = image[4:61, line] = 0
    grid = np.stack(np.meshgrid(np.arange(65), np.arange(65)), axis=-1)
    dot = np.exp(-np.sum((grid - position) ** 2, axis=-1) / 5.8)[..., None]
    return (image * (1 - dot) + np.array([255, 0, 0]) * dot).astype(np.uint8)


def _write_traces(folder, rows, manifest, names):
    index, arrays, rng = [], {}, np.random.default_rng(0)
    for name in names:
        for outcome, wanted in (("success", True), ("failure", False)):
            row = next((r for r in rows if r["variant"] == name and r["success"][-1] is wanted), None)
            if row is None:
                continue
            key, path = f"{name}/{outcome}", np.array(row["path"])
            arrays[f"{key}/path"] = path
            arrays[f"{key}/real"] = np.stack([_picture(p) for p in path[1:]])
            noisy = [_picture(p + rng.normal(size=2)) + rng.normal(scale=12, size=(65, 65, 3)) for p in path[1:]]
            arrays[f"{key}/imagined"] = np.clip(np.stack(noisy)[:, :64, :64], 0, 255).astype(np.uint8)
            arrays[f"{key}/start"] = _picture(path[0])
            arrays[f"{key}/goal"] = _picture(np.array(manifest["evaluation"][row["episode"]]["goal"]))
            index.append(
                {
                    "variant": name,
                    **{name: row[name] for name in ("episode", "seed", "horizon")},
                    "outcome": outcome,
                    "key": key,
                    "extent": [-0.5, 64.5, 64.5, -0.5],
                    "goal": manifest["evaluation"][row["episode"]]["goal"],
                }
            )
    np.savez_compressed(folder / "traces.npz", **arrays)
    (folder / "traces.json").write_text(json.dumps(index))


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_folder(folder, rows, variants=None, iterations=2):
    """The smallest finished folder that holds `rows`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(
            {
                "config": {"name": "synthetic", "env": {"name": "wall"}, "engine": {"noise_floor_tile": 2}},
                "versions": {"wmq_jax": "0.1.0", "jax": "0.10.2", "python": "3.11.2"},
                "git_revision": "0123456789abcdef",
                "device": {"platform": "cpu", "kind": "cpu", "count": 2},
                "xla_flags": "--xla_cpu_multi_thread_eigen=false",
                "tile": 1,
                "checkpoint": "bundled",
                "model_parameters": 459_000,
                "planner": {
                    "horizon": 5,
                    "samples": 64,
                    "elites": 8,
                    "steps": 8,
                    "mpc_iterations": iterations,
                    "alpha": 1.0,
                    "objective": "last",
                },
            }
        )
    )
    (folder / "variants.json").write_text(json.dumps(variants if variants is not None else variant_entries()))
    write_lines(folder / "rows.jsonl", rows)
    return folder


def write_sweep(folder, episodes=48, seeds=1, horizons=(5,), iterations=5, variants=len(_VARIANTS)):
    """A complete synthetic sweep with references, a noise floor and traces."""
    skilled = [(entry[0], entry[-1]) for entry in _VARIANTS[:variants]]
    rows, manifest = _simulate(episodes, seeds, horizons, iterations, skilled)
    write_folder(folder, rows, variant_entries(variants), iterations)
    (folder / "episodes.json").write_text(json.dumps(manifest))
    write_lines(
        folder / "reference.jsonl",
        _simulate(episodes, 1, horizons[-1:], iterations, [("true simulator", 0.66), ("random actions", 0.0)])[0],
    )
    recomputed, _ = _simulate(episodes, seeds, horizons, iterations, skilled, salt=1)
    floor = [new if (new["episode"] + len(new["variant"])) % 9 == 0 else old for old, new in zip(rows, recomputed)]
    write_lines(folder / "noise_floor.jsonl", floor)
    _write_traces(folder, rows, manifest, [skilled[0][0], skilled[-1][0], skilled[len(skilled) // 2][0]])
    return folder


@pytest.fixture(scope="session")
def sweep_folder(tmp_path_factory):
    """A complete synthetic sweep, shared by the tests that only read it."""
    return write_sweep(tmp_path_factory.mktemp("sweep") / "results", episodes=16)


@pytest.fixture
def synthetic():
    """The writers of this file, for tests that need a folder of their own."""
    import types

    return types.SimpleNamespace(
        make_row=make_row,
        write_lines=write_lines,
        write_folder=write_folder,
        write_sweep=write_sweep,
        variant_entries=variant_entries,
    )
