"""`imagine` against the plain rollout, for every saving it makes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.tiny import observations, random_model, tiny_config
from tests.quick_jit import quick_jit
from wmq_jax.models import Latent, PredictorConfig, WorldModel, imagine, official_config

pytestmark = [pytest.mark.bitwise, pytest.mark.quick]

SAMPLES, HORIZON = 5, 6
CLOSE = dict(rtol=1e-4, atol=1e-5)
MODELS = {
    f"history {num_hist}, concat_dim {concat_dim}{', residual' if residual else ''}": dict(
        num_hist=num_hist,
        concat_dim=concat_dim,
        predictor=PredictorConfig(depth=2, heads=2, dim_head=4, mlp_dim=16, residual=residual),
    )
    for num_hist, concat_dim, residual in ((1, 1, False), (1, 0, True), (3, 1, False), (3, 0, True))
}


class Case:
    """A model, one observed frame, and what the plain rollout makes of it."""

    def __init__(self, config):
        self.config = config
        self.model, self.variables = random_model(self.config)
        visual, proprio, _ = observations(self.config, 1, 1)
        self.actions = jax.random.normal(jax.random.key(7), (SAMPLES, HORIZON, self.config.action_dim))
        encode = quick_jit(functools.partial(self.model.apply, method="encode_obs"))
        self.latent = Latent(*(x[0, 0] for x in encode(self.variables, visual, proprio)))

    @functools.cached_property
    def plain(self):
        """The plain rollout of every sample."""
        visual, proprio, _ = observations(self.config, 1, 1)
        repeated = (jnp.repeat(x, SAMPLES, axis=0) for x in (visual, proprio))
        rollout = quick_jit(functools.partial(self.model.apply, method="rollout"))
        return rollout(self.variables, *repeated, self.actions)

    def imagine(self, actions, horizon=None, keep="last"):
        return imagine(self.model.apply, self.config, self.variables, self.latent, actions, horizon, keep)

    @functools.cached_property
    def traced(self):
        """Jitted (actions, horizon, keep) with the horizon as data."""
        return jax.jit(
            lambda actions, horizon, keep="last": self.imagine(actions, horizon, keep), static_argnames="keep"
        )

    @functools.cached_property
    def static(self):
        """Jitted (actions, keep): a program for exactly these actions."""
        return jax.jit(lambda actions, keep="last": self.imagine(actions, None, keep), static_argnames="keep")


@functools.lru_cache
def case_of(name):
    return Case(tiny_config(**MODELS[name]))


@pytest.fixture(params=MODELS)
def case(request):
    return case_of(request.param)


def assert_close(ours, plain):
    for x, y in zip(ours, plain, strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, **CLOSE)


def assert_same_bits(ours, others):
    for x, y in zip(ours, others, strict=True):
        np.testing.assert_array_equal(np.asarray(x).view(np.uint32), np.asarray(y).view(np.uint32))


def frame(latent, t):
    return Latent(*(x[:, t] for x in latent))


def test_every_frame_is_the_plain_rollouts(case):
    assert_close(case.static(case.actions, "all"), case.plain)


def test_every_traced_horizon_is_the_plain_rollouts(case):
    for horizon in range(1, HORIZON + 1):
        assert_close(case.traced(case.actions, horizon), frame(case.plain, horizon))


# One step, the last growing one, the first sliding one, all: where the two programs differ most.
@pytest.mark.parametrize(
    "name, horizons",
    [
        ("history 1, concat_dim 1", (1, 2, 6)),
        ("history 3, concat_dim 1", (1, 3, 4, 6)),
        ("history 3, concat_dim 0, residual", (4,)),
    ],
)
def test_a_traced_horizon_is_the_shorter_planner_bit_for_bit(name, horizons):
    case = case_of(name)
    for horizon in horizons:
        assert_same_bits(case.traced(case.actions, horizon), case.static(case.actions[:, :horizon]))


@pytest.mark.parametrize("name, horizon", [("history 1, concat_dim 1", 1), ("history 3, concat_dim 1", 2)])
def test_a_traced_horizon_keeps_zeros_after_it(name, horizon):
    case = case_of(name)
    kept = case.traced(case.actions, horizon, "all")
    assert_same_bits((x[:, : horizon + 1] for x in kept), case.static(case.actions[:, :horizon], "all"))
    assert not any(np.any(x[:, horizon + 1 :]) for x in kept)


def test_a_static_horizon_cuts_the_actions():
    case = case_of("history 3, concat_dim 1")
    assert_same_bits(jax.jit(lambda a: case.imagine(a, 2))(case.actions), case.static(case.actions[:, :2]))


@pytest.mark.parametrize("name", ["history 1, concat_dim 1", "history 3, concat_dim 1"])
def test_horizons_of_a_mapped_or_vmapped_batch(name):
    case = case_of(name)
    horizons = jnp.array([4, 1, HORIZON, 2])
    # The actions are data, as they are for the traced horizon; XLA computes with constants beforehand, and otherwise.
    over = lambda actions, hs: jax.lax.map(lambda h: case.imagine(actions, h), hs)
    mapped = jax.jit(over)(case.actions, horizons)
    vmapped = quick_jit(jax.vmap(lambda h: case.imagine(case.actions, h)))(horizons)
    for i, horizon in enumerate(horizons):
        assert_same_bits((x[i] for x in mapped), case.traced(case.actions, horizon))
        assert_close((x[i] for x in vmapped), frame(case.plain, int(horizon)))


@pytest.mark.parametrize("name", ["history 1, concat_dim 1", "history 3, concat_dim 1"])
def test_no_frame_is_predicted_that_is_not_read(name):
    """A traced horizon runs that many predictions and no more; growing windows use the cache, sliding ones do not."""
    case = case_of(name)
    calls = []

    def counting(variables, *args, method):
        if method != "replace_actions":
            jax.debug.callback(lambda: calls.append(method))
        return case.model.apply(variables, *args, method=method)

    run = quick_jit(
        lambda actions, horizon: imagine(counting, case.config, case.variables, case.latent, actions, horizon)
    )
    grown = case.config.num_hist if case.config.num_hist > 1 else 0
    for horizon in range(1, HORIZON + 1):
        calls.clear()
        jax.block_until_ready(run(case.actions, horizon))
        jax.effects_barrier()
        assert calls.count("predict_next") == min(horizon, grown)
        assert calls.count("predict_last") == max(0, horizon - grown)
        assert set(calls) <= {"predict_next", "predict_last"}, "nothing is encoded again"


def test_pruned_and_cached_predictions_are_the_windows(case):
    """`predict_last` and a chain of `predict_next` against `predict`."""
    model, variables, tokens = case.model, case.variables, case.config.tokens_per_frame
    window = jax.random.normal(jax.random.key(3), (2, case.config.num_hist, tokens, case.config.predictor_dim))

    @quick_jit
    def run(variables, window):
        cache, chain = None, []
        for t in range(case.config.num_hist):
            out, cache = model.apply(variables, window[:, t], cache, method="predict_next")
            chain.append(out)
        last = model.apply(variables, window, method="predict_last")
        return model.apply(variables, window, method="predict"), last, jnp.stack(chain, axis=1)

    plain, last, chain = run(variables, window)
    np.testing.assert_allclose(last, plain[:, -1], **CLOSE)
    np.testing.assert_allclose(chain, plain, **CLOSE)


def test_the_pruned_last_layer_does_less_work():
    """Floating-point operations, by the compiler's count, of a three-frame window."""
    case = case_of("history 3, concat_dim 1")
    window = jnp.zeros((2, 3, case.config.tokens_per_frame, case.config.predictor_dim))

    def flops(method):
        run = jax.jit(functools.partial(case.model.apply, method=method))
        return run.lower(case.variables, window).compile().cost_analysis()["flops"]

    assert flops("predict_last") < 0.9 * flops("predict")


@pytest.mark.parametrize("num_hist", [1, 2])
def test_gradient_with_respect_to_actions(num_hist):
    """Growing and sliding steps, against the plain rollout's gradient."""
    config = tiny_config(num_hist=num_hist, predictor=PredictorConfig(depth=1, heads=2, dim_head=4, mlp_dim=16))
    model, variables = random_model(config)
    visual, proprio, actions = observations(config, 1, 3)
    target = jax.random.normal(jax.random.key(5), (config.num_patches, config.encoder.width))

    def cost(latent):
        return jnp.mean((latent.visual - target) ** 2) + jnp.mean(latent.proprio**2)

    def plain(actions):
        imagined = model.apply(variables, visual[:, :1], proprio[:, :1], actions, method="rollout")
        return cost(frame(imagined, actions.shape[1]))

    def ours(actions):
        latent = model.apply(variables, visual[:, :1], proprio[:, :1], method="encode_obs")
        return cost(imagine(model.apply, config, variables, Latent(*(x[0, 0] for x in latent)), actions))

    gradient, wanted = (quick_jit(jax.grad(f))(actions) for f in (ours, plain))
    assert (np.abs(wanted).max(axis=(0, 2)) > 1e-4).all(), "every action matters"
    np.testing.assert_allclose(gradient, wanted, rtol=1e-3, atol=1e-4 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("env", ["wall", "pusht"])
def test_official_sizes_trace(env):
    """The shapes of a traced horizon at full size, without computing anything."""
    config = official_config(env)
    model = WorldModel(config)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), *observations(config, 1, 1)))
    latent = Latent(jnp.zeros((config.num_patches, config.encoder.width)), jnp.zeros(config.proprio_emb_dim))
    actions = jnp.zeros((2, 5, config.action_dim))
    kept = jax.eval_shape(lambda v, h: imagine(model.apply, config, v, latent, actions, h, "all"), variables, 3)
    assert (kept.visual.shape, kept.proprio.shape) == ((2, 6, 196, 384), (2, 6, 10))


def test_samples_do_not_influence_each_other():
    case = case_of("history 3, concat_dim 1")
    changed = case.actions.at[0].add(1.0)
    before, after = case.static(case.actions), case.static(changed)
    assert_same_bits((x[1:] for x in before), (x[1:] for x in after))
    assert np.abs(before.visual[0] - after.visual[0]).max() > 1e-3


@pytest.mark.parametrize("horizon", [0, HORIZON + 1])
def test_a_horizon_out_of_range_is_refused(horizon):
    case = case_of("history 1, concat_dim 1")
    with pytest.raises(ValueError, match=f"horizon must lie in 1..{HORIZON}"):
        case.imagine(case.actions, horizon)


def test_wrong_inputs_are_refused():
    case = case_of("history 1, concat_dim 1")
    with pytest.raises(ValueError, match="'last' or 'all'"):
        case.imagine(case.actions, keep="first")
    with pytest.raises(ValueError, match=r"actions \(N, H, A\)"):
        case.imagine(case.actions[0])
    batched = Latent(*(x[None] for x in case.latent))
    with pytest.raises(ValueError, match="latent of one frame"):
        imagine(case.model.apply, case.config, case.variables, batched, case.actions)
