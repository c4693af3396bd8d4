"""Normalisation, statistics, splits, clips and images against preprocess.npz and dataset_wall."""

import jax.numpy as jnp
import numpy as np
import pytest

from wmq_jax.data import Normalizer, Portion, open_dataset
from wmq_jax.data.official import fixed_normalizer
from wmq_jax.data.splits import clip_slices, shuffle_slices, split_trajectories
from wmq_jax.io import save_torch
from wmq_jax.models import normalize_image
from wmq_jax.models.image import resize

EXACT = dict(atol=1e-6)
IMAGE = dict(atol=5e-6)
TRAIN_FRACTION = {"wall_split": 0.7, "split_seed42": 0.9}


def same(actual, recorded, compared):
    np.testing.assert_array_equal(actual, recorded)
    compared(recorded.size)


@pytest.fixture(scope="module")
def recording(golden):
    return golden("preprocess.npz")


@pytest.fixture(scope="module")
def wall(golden):
    return open_dataset(golden.path("dataset_wall") / "wall_single")


def normalizer(recording, case):
    return Normalizer(
        **{name: recording[f"{case}/{name}"] for name in ("action_mean", "action_std", "proprio_mean", "proprio_std")}
    )


def test_normalisation(recording, close):
    ours, x = normalizer(recording, "pp/stats"), recording["pp/x"]
    close(ours.normalize_action(x), recording["pp/normalize_actions"], rel_l2=1e-6, what="normalised actions")
    close(ours.denormalize_action(x), recording["pp/denormalize_actions"], what="actions", **EXACT)
    close(ours.normalize_proprio(x), recording["pp/normalize_proprios"], rel_l2=1e-6, what="normalised proprio")
    states = (x - recording["pp/stats/state_mean"]) / recording["pp/stats/state_std"]
    close(states, recording["pp/normalize_states"], rel_l2=1e-6, what="normalised states")


def test_images_become_channel_last_in_minus_one_to_one(recording, close):
    close(np.moveaxis(normalize_image(recording["pp/img"]), -1, -3), recording["pp/transform_img"], **EXACT)


def test_statistics_of_the_wall_data(recording, wall, close):
    ours = wall.normalizer
    for name in ("action_mean", "action_std", "proprio_mean", "proprio_std"):
        close(getattr(ours, name), recording[f"wall_stats/{name}"], rel_l2=1e-6, what=name)
    for part in ("mean", "std"):
        close(getattr(ours, f"proprio_{part}"), recording[f"wall_stats/state_{part}"], rel_l2=1e-6, what=part)


def test_constants_of_pusht(recording, compared):
    for name in ("action_mean", "action_std", "proprio_mean", "proprio_std"):
        same(getattr(fixed_normalizer("pusht"), name), recording[f"pusht/{name}"], compared)


def test_constants_that_the_wall_loader_ignores(recording, wall, compared):
    """They do not even fit the data: taking them for its statistics would fail."""
    for name in ("action_mean", "action_std"):
        ignored = recording[f"wall_unused_constants/{name}"]
        assert ignored.shape != getattr(wall.normalizer, name).shape or not np.allclose(
            ignored, getattr(wall.normalizer, name), rtol=1e-3
        )
        compared(ignored.size)


def test_statistics_of_ragged_trajectories(recording, tmp_path, close):
    """The loader's own masking: what lies behind an episode's end counts for nothing."""
    data, lengths = recording["maze_stats/data"], recording["maze_stats/lengths"]
    padding = np.arange(data.shape[1]) >= lengths[:, None]
    assert padding.any()
    for name in ("states", "actions"):
        save_torch(tmp_path / f"{name}.pth", np.where(padding[..., None], np.float32(1e6), data))
    save_torch(tmp_path / "seq_lengths.pth", lengths.astype(np.int64))
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "point_maze"
    for part in ("mean", "std"):
        for kind in ("action", "proprio"):
            ours = getattr(dataset.normalizer, f"{kind}_{part}")
            close(ours, recording[f"maze_stats/{part}"], what=f"{kind} {part}", **EXACT)


def test_splits(recording, wall, compared):
    for case in recording.names("split_seed42/"):
        ours = split_trajectories(int(case.removeprefix("n")), TRAIN_FRACTION["split_seed42"])
        for part in ("train", "valid"):
            recorded = recording[f"split_seed42/{case}/{part}"]
            same(getattr(ours, part)[: len(recorded)], recorded, compared)
    recorded = [recording[f"wall_split/{part}_indices"] for part in ("train", "valid")]
    assert sum(map(len, recorded)) == len(wall)
    ours = wall.taken(Portion(split_ratio=TRAIN_FRACTION["wall_split"])).split()
    for part, rows in zip(ours, recorded):
        same(part, rows, compared)


def clip_shape(recording):
    """Frames of a clip and frameskip, from the recorded item."""
    frames = len(recording["wall_item0/proprio"])
    _, start, stop = recording["wall_item0/slice"]
    return frames, int(stop - start) // frames


def test_clips(recording, wall, compared):
    split = wall.taken(Portion(split_ratio=TRAIN_FRACTION["wall_split"])).split()
    slices = [clip_slices(wall.lengths[part], *clip_shape(recording)) for part in split]
    for case in (name for name in recording.names() if name.startswith("wall_seed")):
        shuffled = shuffle_slices(slices, int(case.removeprefix("wall_seed")))
        for rows, part in zip(shuffled, ("train", "valid")):
            same(rows, recording[f"{case}/{part}_slices"], compared)


def images(frames, side):
    return np.moveaxis(resize(normalize_image(jnp.asarray(frames)), side), -1, -3)


def test_an_item(recording, wall, close):
    ours = normalizer(recording, "wall_stats")
    index, start, stop = (int(n) for n in recording["wall_item0/slice"])
    episode = recording["wall_split/train_indices"][index]
    _, frameskip = clip_shape(recording)
    states = wall.states[episode, start:stop:frameskip]
    close(states, recording["wall_item0/state"], what="state", **EXACT)
    close(ours.normalize_proprio(states), recording["wall_item0/proprio"], what="proprio", **EXACT)
    actions = ours.to_model_actions(wall.actions[episode, start:stop], frameskip)
    close(actions, recording["wall_item0/act"], what="actions", **EXACT)
    recorded = recording.sub("wall_item0/visual")
    frames = wall.frames(episode, range(start, stop, frameskip))
    close(images(frames, recorded.shape[-1]), recorded, what="images", **IMAGE)


def test_a_validation_trajectory(recording, wall, close):
    ours, episode = normalizer(recording, "wall_stats"), recording.scalar("wall_traj_valid0/episode")
    assert episode == recording["wall_split/valid_indices"][0]
    close(wall.states[episode], recording["wall_traj_valid0/state"], what="state", **EXACT)
    layout = [wall.extras[name][episode] for name in ("door_y", "wall_x")]
    close(layout, recording["wall_traj_valid0/door_wall"].ravel()[:2], what="layout", **EXACT)
    close(ours.normalize_proprio(wall.states[episode]), recording["wall_traj_valid0/proprio"], what="proprio", **EXACT)
    close(ours.normalize_action(wall.actions[episode]), recording["wall_traj_valid0/act"], what="actions", **EXACT)
    recorded = recording.sub("wall_traj_valid0/visual")
    close(images(wall.frames(episode), recorded.shape[-1]), recorded, what="images", **IMAGE)


def test_everything_recorded_is_compared(recording, check_all_read):
    unnormalised = "states are not normalised, neither there nor here"
    check_all_read(recording, {"(pusht|wall_unused_constants)/state_(mean|std)": unnormalised})
