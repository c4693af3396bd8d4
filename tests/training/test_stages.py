"""The stages on a tiny model: each trains its own modules, from the right gradients, and leaves the others alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmq_jax.data import Normalizer, Trajectories
from wmq_jax.data.splits import clip_slices
from wmq_jax.envs import Wall
from wmq_jax.models import DecoderConfig, PredictorConfig, ViTConfig, WorldModel, WorldModelConfig
from wmq_jax.training import WalkConfig, generate_trajectories
from wmq_jax.training.decoder import decoder_stage
from wmq_jax.training.encoder import encoder_stage, feature_statistics, slowness
from wmq_jax.training.frames import encode_states, encode_visual, frames_of, render
from wmq_jax.training.losses import predict_successors, prediction_losses
from wmq_jax.training.predictor import TRAINED, clip_tokens, copy_losses, predictor_stage
from wmq_jax.training.run import init_params
from wmq_jax.training.settings import DecoderSettings, EncoderSettings, PredictorSettings

pytestmark = pytest.mark.quick

ENV = Wall()
CONFIG = WorldModelConfig(
    encoder=ViTConfig(width=16, depth=1, heads=2, mlp_dim=32, table_grid=4),
    predictor=PredictorConfig(depth=1, heads=2, dim_head=8, mlp_dim=32, dropout=0.0, residual=True),
    decoder=DecoderConfig(channel=8, n_res_block=1, n_res_channel=4),
    proprio_dim=2,
    action_dim=10,
    image_size=65,
    num_hist=1,
    standardize_latents=True,
)
MODEL = WorldModel(CONFIG)


@pytest.fixture(scope="module")
def params():
    return init_params(MODEL, jax.random.key(0))


@pytest.fixture(scope="module")
def trajectories():
    return generate_trajectories(jax.random.key(1), ENV, 40, WalkConfig(steps=20))


@pytest.fixture(scope="module")
def frames(trajectories):
    return frames_of(trajectories, ENV, Normalizer.fit(trajectories.actions, trajectories.states), CONFIG.frameskip)


def test_from_every_offset_the_clips_are_the_official_ones(trajectories):
    """Frames 5 steps apart from every first step; trajectories may end between two frames."""
    normalizer = Normalizer.fit(trajectories.actions, trajectories.states)
    cut = Trajectories(trajectories.states[:, :20], trajectories.actions[:, :19])
    found = frames_of(cut, ENV, normalizer, 5, offsets=5)
    states, actions = cut
    assert found.states.shape[:2] == (5 * 40, 1 + 15 // 5)
    clips = {
        (row % 40, row // 40 + 5 * start): (found.states[row, start : start + 2], found.actions[row, start])
        for row in range(0, 200, 7)
        for start in range(3)
    }
    for (row, first), (pair, action) in clips.items():
        np.testing.assert_array_equal(pair, states[row, [first, first + 5]])
        expected = normalizer.to_model_actions(actions[row, first : first + 5], 5)[0]
        np.testing.assert_allclose(action, expected, rtol=1e-6)
    everywhere = {(row % 40, row // 40 + 5 * start) for row in range(200) for start in range(3)}
    official = {(row, first) for row, first, _ in clip_slices([len(x) for x in states], 2, 5).tolist()}
    assert official <= everywhere


def moved(before, after):
    """Names of the leaves that differ, by path."""
    flat = lambda tree: {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
    before, after = flat(before), flat(after)
    assert before.keys() == after.keys()
    return {name for name in before if not np.array_equal(before[name], after[name])}


def run(stage):
    """All chunks: the last state, and the metrics of every chunk."""
    state, metrics = stage.init(), []
    for index in range(stage.chunks):
        state, found = stage.chunk(state, index)
        metrics.append(found)
    return state, metrics


def test_the_encoder_stage_trains_every_part_of_the_encoder(params, trajectories):
    settings = EncoderSettings(
        steps=30, chunk=10, batch=16, slowness=0.5, learning_rate=3e-3, warmup=2, blurs=(4.0, 16.0), grid=8
    )
    stage = encoder_stage(MODEL, params, ENV, jnp.asarray(trajectories.states), jax.random.key(2), settings)
    state, metrics = run(stage)
    start = stage.init().params
    unmoved = set(jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(start)) - moved(
        start, state.params
    )
    assert not unmoved
    assert sum(metrics[-1][f"blur {blur:g}"] for blur in (4, 16)) < sum(
        metrics[0][f"blur {blur:g}"] for blur in (4, 16)
    )


def test_the_weight_of_slowness_makes_features_slow(params, trajectories):
    def slowness_after(weight):
        settings = EncoderSettings(
            steps=60, chunk=20, batch=16, slowness=weight, learning_rate=2e-2, warmup=2, blurs=(4.0,), grid=8
        )
        states = jnp.asarray(trajectories.states)
        return float(run(encoder_stage(MODEL, params, ENV, states, jax.random.key(2), settings))[1][-1]["slowness"])

    assert slowness_after(20.0) < 0.95 * slowness_after(0.0)


def test_the_position_table_starts_wide(params):
    plain = jax.jit(MODEL.init)(
        jax.random.key(0), jnp.zeros((1, 1, 65, 65, 3)), jnp.zeros((1, 1, 2)), jnp.zeros((1, 1, 10))
    )["params"]["encoder"]
    assert float(params["encoder"]["pos_embed"].std()) > 10 * float(plain["pos_embed"].std())
    np.testing.assert_array_equal(params["encoder"]["cls_token"], plain["cls_token"])


def test_the_predictor_stage_trains_predictor_and_embeddings(params, frames):
    settings = PredictorSettings(rounds=6, shard=20, passes=2, batch=8, learning_rate=3e-3, weight_decay=0.01, warmup=2)
    stage = predictor_stage(MODEL, params, ENV, frames, jax.random.key(3), settings)
    state, metrics = run(stage)
    assert set(state.params) == set(TRAINED)
    start = stage.init().params
    assert moved(start, state.params) == set(
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(start)
    )
    assert metrics[-1]["latent"] < metrics[0]["latent"]


def test_the_decoder_stage_trains_the_decoder(params, trajectories):
    settings = DecoderSettings(steps=20, chunk=10, batch=4, learning_rate=3e-3, warmup=2)
    stage = decoder_stage(MODEL, params, ENV, jnp.asarray(trajectories.states), jax.random.key(4), settings)
    state, metrics = run(stage)
    assert set(state.params) == {"decoder"} and moved(stage.init().params, state.params)
    assert metrics[-1]["pixel"] < metrics[0]["pixel"]


def test_gradients_of_the_prediction_loss(params, frames):
    """They reach predictor, action and proprio embeddings, and stop at the targets."""
    visual = encode_states(MODEL, params, ENV, frames.states[:4, :2])

    def loss(params, target_proprio):
        z = clip_tokens(MODEL, params, visual, frames.proprio[:4, :2], frames.actions[:4, :2])
        target = clip_tokens(MODEL, params, visual, target_proprio, frames.actions[:4, :2])
        predicted = predict_successors(MODEL, params, z)
        return prediction_losses(MODEL, predicted, target).z

    gradient, at_target = jax.grad(loss, argnums=(0, 1))(params, frames.proprio[:4, :2])
    for name in TRAINED:
        assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient[name])), name
    for name in ("encoder", "encoder_stats", "decoder"):
        assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(gradient[name])), name
    assert float(jnp.abs(at_target).max()) == 0


def test_tokens_of_encoded_frames_are_those_of_the_model(params, frames):
    states, proprio, actions = (x[:3, :2] for x in frames)
    expected = MODEL.apply({"params": params}, render(ENV, states), proprio, actions, method="encode")
    found = clip_tokens(MODEL, params, encode_states(MODEL, params, ENV, states), proprio, actions)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_blocks_of_encoding_do_not_show(params, trajectories):
    states = jnp.asarray(trajectories.states.reshape(-1, 2)[:300])
    together = encode_visual(MODEL, params, render(ENV, states))
    np.testing.assert_allclose(encode_states(MODEL, params, ENV, states), together, atol=2e-5)


def test_the_copy_baseline_is_the_mean_square_change(params, frames):
    z = clip_tokens(
        MODEL, params, *(encode_states(MODEL, params, ENV, frames.states[:4, :2]), *(x[:4, :2] for x in frames[1:]))
    )
    kept = np.asarray(z[..., : -CONFIG.action_emb_dim])
    np.testing.assert_allclose(copy_losses(MODEL, z).z, ((kept[:, 1] - kept[:, 0]) ** 2).mean(), rtol=1e-5)


def test_model_actions_lead_from_frame_to_frame(trajectories, frames):
    normalizer = Normalizer.fit(trajectories.actions, trajectories.states)
    raw = normalizer.denormalize_action(np.asarray(frames.actions[:, :-1]).reshape(trajectories.actions.shape))
    np.testing.assert_allclose(raw, trajectories.actions, atol=1e-5)
    np.testing.assert_array_equal(frames.states, trajectories.states[:, :: CONFIG.frameskip])
    assert not np.asarray(frames.actions[:, -1]).any()


def test_standardised_features_have_unit_statistics(params, trajectories):
    states = jnp.asarray(trajectories.states)
    fitted = {**params, "encoder_stats": feature_statistics(MODEL, params, ENV, states)}
    features = encode_states(MODEL, fitted, ENV, states)
    np.testing.assert_allclose(features.mean(axis=(0, 1, 2)), 0, atol=0.05)
    np.testing.assert_allclose(features.std(axis=(0, 1, 2)), 1, atol=0.05)


def test_slowness_is_scale_free_zero_for_pairs_at_rest_and_one_for_unrelated_frames():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 2000, 3, 5))
    assert float(slowness(first, first)) == 0
    np.testing.assert_allclose(slowness(first, second), 1, atol=0.1)
    nearby = first + 0.1 * second
    np.testing.assert_allclose(slowness(first, nearby), slowness(7 * first + 3, 7 * nearby + 3), rtol=1e-4)
    assert float(slowness(first, nearby)) < 0.02
