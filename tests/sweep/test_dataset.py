"""Converted models and official data sets in a sweep: statistics, calibration on real episodes, clear refusals."""

import copy
import dataclasses
import json
import random
import shutil

import jax
import numpy as np
import pytest

from configs import quantize, wall_official
from tests.data.official_files import make_maze, make_wall, write
from tests.sweep.conftest import TINY
from wmq_jax import sweep as sweeps
from wmq_jax.checkpoints.native import PORTION, load_model, save_model
from wmq_jax.data import Normalizer, OfficialDataset, Portion, open_dataset
from wmq_jax.data.splits import Split
from wmq_jax.envs import Wall, dataset_manifest
from wmq_jax.models import normalize_image
from wmq_jax.sweep.calibration import dataset_rollouts, drawn_episodes
from wmq_jax.sweep.run import build_engine, save_descriptions

pytestmark = pytest.mark.quick

LIMITS = dict(episodes=3, samples=4, horizon=2, seed=1, iterations=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "wall_single"
    make_wall(folder, side=TINY.image_size, steps=13)
    return folder


@pytest.fixture(scope="module")
def converted(checkpoint, tmp_path_factory):
    """The tiny checkpoint without its statistics."""
    folder = tmp_path_factory.mktemp("converted") / "tiny"
    save_model(folder, TINY, load_model(checkpoint).params, None, {})
    return folder


def test_a_converted_model_takes_the_statistics_of_its_data_set(prepare, converted, data):
    with pytest.raises(ValueError, match="are unknown without its data set: set --config.dataset to"):
        prepare(checkpoint=str(converted))
    found = prepare(checkpoint=str(converted), dataset=str(data)).problem.normalizer
    assert found.to_dict() == open_dataset(data).normalizer.to_dict()


def test_a_model_keeps_its_own_statistics(prepare, checkpoint, data):
    found = prepare(dataset=str(data)).problem.normalizer
    assert found.to_dict() == load_model(checkpoint).normalizer.to_dict()


def test_a_wall_that_the_data_set_has_not_is_said(prepare, data):
    doors = open_dataset(data).extras["door_y"]
    notes = lambda door: [
        line for line in sweeps.describe(prepare(dataset=str(data), env__door_y=door)).splitlines() if "note" in line
    ]
    assert notes(int(doors[0])) == []
    there = "; ".join(f"door_y {door:g}, wall_x 32" for door in sorted(set(doors.tolist()))[:5])
    assert notes(21) == [
        f"note       no trajectory of the data set has door_y 21, wall_x 32 (--config.env); it has {there}"
    ]


def test_a_data_set_of_another_task_is_named(prepare, tmp_path):
    make_maze(tmp_path / "point_maze")
    with pytest.raises(ValueError, match="proprioception of 10 and 2 numbers, but data set .* has 10 and 4"):
        prepare(dataset=str(tmp_path / "point_maze"))


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(calibration_source="episodes"), "not one of planner, dataset"),
        (dict(calibration_source="dataset"), "needs a data set"),
    ],
)
def test_sources_of_calibration_are_checked(prepare, changes, words):
    with pytest.raises(ValueError, match=words):
        prepare(**changes)


@pytest.fixture
def changing(tmp_path):
    """A data set of its own for a test that changes it, and its arrays."""
    return tmp_path / "wall_single", make_wall(tmp_path / "wall_single", side=TINY.image_size, steps=13)


REAL = dict(calibration_source="dataset", calibration__episodes=1)


def test_more_real_episodes_than_there_are_are_refused(prepare, data):
    there = len(open_dataset(data).split().train)
    words = f"^calibration takes {there + 1} episodes of data set .*, whose training part has {there}; lower"
    with pytest.raises(ValueError, match=words):
        prepare(dataset=str(data), **{**REAL, "calibration__episodes": there + 1})


def rewrite_actions(folder, arrays):
    write(folder / "actions.pth", arrays["actions"][::-1].copy())  # whose statistics are the same


def rewrite_frames(folder, arrays):
    for n, frames in enumerate(arrays["frames"]):
        write(folder / "obses" / f"episode_{n:03d}.pth", 255 - frames)


def rewrite_states(folder, arrays):
    write(folder / "states.pth", arrays["states"] + np.float32(1))


@pytest.mark.parametrize(
    "rewrite, named",
    [(rewrite_actions, "dataset.actions"), (rewrite_frames, "dataset.frames"), (rewrite_states, "dataset.proprio")],
)
def test_another_content_in_the_same_place_is_not_resumed_with(prepare, changing, tmp_path, rewrite, named):
    changes = dict(dataset=str(changing[0]), **REAL)
    sweeps.open_folder(prepare(**changes), tmp_path / "results")
    sweeps.open_folder(prepare(**changes), tmp_path / "results")
    rewrite(*changing)
    with pytest.raises(ValueError, match=f"another config: given.{named} is '[0-9a-f]*' there and '[0-9a-f]*' now"):
        sweeps.open_folder(prepare(**changes), tmp_path / "results")


def test_what_nothing_looks_at_does_not_count(prepare, changing):
    """Goals are states, statistics are the model's own."""
    goals = dict(episodes__goal_source="dset", episodes__goal_horizon=1)
    for changes, counts in ((goals, True), ({}, False)):
        before = prepare(dataset=str(changing[0]), **changes).config["given"]
        assert bool(before["dataset"]) == counts
        rewrite_frames(*changing)
        assert prepare(dataset=str(changing[0]), **changes).config["given"] == before
    rewrite_actions(*changing)
    assert prepare(dataset=str(changing[0])).config["given"] == before
    assert prepare(dataset=str(changing[0]), **goals).config["given"] != before


def test_other_statistics_in_the_same_place_are_not_resumed_with(prepare, checkpoint, tmp_path):
    model = load_model(checkpoint)
    for scale in (1, 2):
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        normalizer = dataclasses.replace(model.normalizer, action_std=scale * model.normalizer.action_std)
        save_model(tmp_path / "model", TINY, model.params, normalizer, {})
        sweep = prepare(checkpoint=str(tmp_path / "model"))
        if scale == 1:
            sweeps.open_folder(sweep, tmp_path / "results")
    with pytest.raises(ValueError, match=r"given.normalizer.action_std is \[0.6.* there and \[1.2.* now"):
        sweeps.open_folder(sweep, tmp_path / "results")


def test_a_quantization_keeps_to_its_data_too(base_config, changing, tmp_path):
    """Also to the frames of the episodes held out."""
    config = quantize.get_config("small").to_dict()
    config |= {name: copy.deepcopy(base_config[name]) for name in ("checkpoint", "planner", "calibration", "engine")}
    config |= dict(dataset=str(changing[0]), calibration_source="dataset", held_out=1, variant="w4")
    config["calibration"]["episodes"] = 1
    said = sweeps.describe_quantization(sweeps.prepare_quantization(config | {"held_out": 32}))
    training = len(open_dataset(changing[0]).split().train)
    assert f"looks at   1 episode, and {training - 1} others for the errors of blocks, of {changing[0]}" in said
    held_out = drawn_episodes(open_dataset(changing[0]), config["calibration"], skip=1)[0]
    folder = sweeps.open_workdir(sweeps.prepare_quantization(config), tmp_path / "quantized")
    (folder / "statistics.npz").touch()
    write(changing[0] / "obses" / f"episode_{held_out:03d}.pth", 255 - changing[1]["frames"][held_out])
    with pytest.raises(ValueError, match="given.dataset.frames is '[0-9a-f]*' there and '[0-9a-f]*' now"):
        sweeps.open_workdir(sweeps.prepare_quantization(config), tmp_path / "quantized")


def test_the_split_is_that_of_the_models_run(prepare, checkpoint, data, tmp_path):
    """Statistics, calibration and goals are of what the run took of its data set."""
    portion, params = Portion(n_rollout=4, split_ratio=0.5), load_model(checkpoint).params
    save_model(tmp_path / "converted", TINY, params, None, {PORTION: portion._asdict()})
    sweep = prepare(
        checkpoint=str(tmp_path / "converted"), dataset=str(data), env__door_y=10, episodes__count=20, **DSET
    )
    whole = open_dataset(data)
    taken = whole.taken(portion)
    assert sweep.dataset.portion == portion and len(sweep.dataset) == 4
    assert sweep.problem.normalizer.to_dict() == taken.normalizer.to_dict() != whole.normalizer.to_dict()
    door = {n for n in range(len(whole)) if whole.extras["door_y"][n] == 10}
    drawn = set(sweep.evaluation.segments[:, 0].tolist())
    assert drawn == set(taken.split().valid) & door != set(whole.split().valid) & door
    assert sweep.config["given"]["dataset"]["split_ratio"] == 0.5
    save_model(tmp_path / "damaged", TINY, params, None, {PORTION: {"split_ratio": 2}})
    with pytest.raises(ValueError, match="damaged: split_ratio must be a number from 0 to 1, not 2"):
        prepare(checkpoint=str(tmp_path / "damaged"), dataset=str(data))


DSET = dict(episodes__goal_source="dset", episodes__goal_horizon=2)


def test_episodes_between_states_of_validation_trajectories(prepare, data, tmp_path):
    dataset = open_dataset(data)
    sweep = prepare(dataset=str(data), env__door_y=10, episodes__count=9, **DSET)
    manifest, valid = sweep.evaluation, dataset.split().valid
    assert len(manifest) == 9 and manifest.seeds.tolist() == [99 * n + 1 for n in range(9)]
    for (trajectory, step), init, goal in zip(manifest.segments, manifest.init, manifest.goal, strict=True):
        assert trajectory in valid and 0 <= step < 3
        np.testing.assert_array_equal(init, dataset.states[trajectory, step])
        np.testing.assert_array_equal(goal, dataset.states[trajectory, step + 10])
    assert len(set(manifest.segments[:, 1].tolist())) > 1, "starts differ"
    fewer = prepare(dataset=str(data), **DSET).evaluation
    np.testing.assert_array_equal(fewer.segments, manifest.segments[:3])
    folder = sweeps.open_folder(sweep, tmp_path)
    save_descriptions(sweep, folder)
    saved = json.loads((tmp_path / "episodes.json").read_text())["evaluation"]
    assert [[row["trajectory"], row["step"]] for row in saved] == manifest.segments.tolist()


def test_draws_are_those_of_pythons_generator(data, monkeypatch):
    """Officially: a trajectory, drawn again while it is too short, then a start; by turns, from one generator."""
    dataset = dataclasses.replace(open_dataset(data), lengths=np.array([13, 5, 13, 13, 12]))
    # The episode at 2 has another door.
    monkeypatch.setattr(OfficialDataset, "split", lambda self: Split(np.array([0]), np.array([3, 1, 4, 2])))
    manifest = dataset_manifest(Wall(), dataset, steps=10, episodes=20, base_seed=7)
    draw, expected = random.Random(7), []
    while len(expected) < 20:
        trajectory = [3, 1, 4, 2][draw.randint(0, 3)]
        if trajectory in (3, 4):
            expected.append([trajectory, draw.randint(0, dataset.lengths[trajectory] - 11)])
    assert manifest.segments.tolist() == expected


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(episodes__goal_source="states"), "episodes.goal_source 'states' is not one of random_state, dset"),
        (dict(episodes__goal_source="dset", dataset=""), "episodes.goal_source dset needs a data set"),
        (dict(episodes__goal_horizon=0), "episodes.goal_horizon must be 1..10000, not 0"),
        (
            dict(episodes__goal_horizon=3),
            "goal is 15 steps after a start .--config.* have door_y 10 wall_x 32 with 13 steps",
        ),
        (dict(env__door_y=11), "no validation trajectory with door_y 11 and wall_x 32"),
    ],
)
def test_goals_that_a_data_set_cannot_give_are_named(prepare, data, changes, words):
    with pytest.raises(ValueError, match=words):
        prepare(**(dict(dataset=str(data)) | DSET | changes))


def test_a_data_set_of_another_task_gives_no_goals(tmp_path):
    make_maze(tmp_path / "point_maze")
    with pytest.raises(ValueError, match="of layout point_maze; goals on the wall are taken from wall_single"):
        dataset_manifest(Wall(), open_dataset(tmp_path / "point_maze"), 5, 1, 99)


def test_stretches_of_real_episodes(data):
    dataset = open_dataset(data)
    unit = Normalizer(np.zeros(2), np.ones(2), np.ones(2), 2 * np.ones(2))
    batches = list(dataset_rollouts(dataset, TINY, unit, LIMITS))
    assert len(batches) == LIMITS["episodes"]
    training = dataset.split().train
    starts = [0, 1, 2, 3]  # 13 steps hold a stretch of ten at four places
    for visual, proprio, actions in batches:
        assert visual.shape == (4, 1, 65, 65, 3) and proprio.shape == (4, 1, 2) and actions.shape == (4, 2, 10)
        states = 1 + 2 * np.asarray(proprio)[:, 0]
        (episode,) = [n for n in training if np.allclose(dataset.states[n, starts], states)]
        np.testing.assert_array_equal(visual[:, 0], normalize_image(dataset.frames(episode, starts)))
        np.testing.assert_allclose(actions[2].reshape(10, 2), dataset.actions[episode, 2:12], rtol=1e-6)
    longer = next(dataset_rollouts(dataset, TINY, unit, {**LIMITS, "horizon": 9}))
    assert longer[2].shape == (4, 2, 10)
    short = dataclasses.replace(dataset, lengths=np.full(len(dataset), 4))
    with pytest.raises(ValueError, match="an episode has 4 steps, less than one model action"):
        next(dataset_rollouts(short, TINY, unit, LIMITS))


@pytest.mark.slow
def test_calibration_on_real_episodes_changes_the_static_ranges(prepare, data):
    """And nothing else: weights and dynamic quantizers do not depend on statistics."""
    changes = dict(dataset=str(data), variants="fp w8a8-tensor", planner__samples=6, planner__horizons="2")
    tables = [build_engine(prepare(**changes, calibration_source=source)).table for source in ("planner", "dataset")]
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), *tables)
    assert all(jax.tree.leaves(same["params"]))
    assert not all(jax.tree.leaves({name: part for name, part in same.items() if name != "params"}))


@pytest.mark.parametrize("mode", wall_official.MODES)
def test_the_official_protocol(mode):
    settings = sweeps.check_settings(wall_official.get_config(mode).to_dict())
    assert settings.base_seed == 99 and settings.objective.alpha == 1.0
    assert settings.horizons == {"budget_a": (9,), "budget_b": (12,)}.get(mode, (5,))
    if mode == "official":
        planner = settings.mpc.planner
        assert (planner.samples, planner.elites, planner.steps, planner.check_every) == (300, 30, 10, 1)
        assert (settings.episodes, settings.mpc.iterations) == (50, 7)
