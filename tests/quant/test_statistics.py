"""Statistics of several streams, of divided arrays, and of inputs that are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmq_jax import quant

pytestmark = pytest.mark.quick


def seen(x, observer):
    model = quant.observe(lambda params, x: quant.tap(x, "a") @ params["a"]["kernel"], observer=observer)
    return quant.calibrate(model, {"params": {"a": {"kernel": jnp.ones((x.shape[-1], 2))}}}, [(x,)])


def test_samples_of_unequal_room_do_not_merge():
    """Of what the smaller one dropped, no merged sample can be uniform."""
    many = seen(jnp.zeros((100, 1)), quant.channel_ranges(64, seed=1))
    few = seen(jnp.ones((1000, 1)), quant.channel_ranges(2, seed=2))
    sentence = r"of 'a/input' one has ChannelRange with .* tokens \(64, 1\).*, the other ChannelRange with .* \(2, 1\)"
    with pytest.raises(ValueError, match=sentence):
        quant.merge_statistics(many, few)


def test_statistics_of_other_widths_do_not_merge():
    ranges = quant.channel_ranges()
    for widths in ((1, 8), (4, 8)):
        parts = [seen(jnp.ones((3, width)), ranges) for width in widths]
        with pytest.raises(ValueError, match=r"of 'a/input' one has ChannelRange with minimum \(.,\)"):
            quant.merge_statistics(*parts)


def test_sequences_of_other_lengths_merge_and_of_other_widths_do_not():
    def block(shape, seed):
        run = lambda params, x: quant.tap(quant.tap(x, "block")[..., :6], "block/a") @ params["block"]["a"]["kernel"]
        model = quant.observe(run, blocks=["block"], block_observer=quant.sequences(4, seed))
        variables = {"params": {"block": {"a": {"kernel": jnp.ones((6, 2))}}}}
        return quant.calibrate(model, variables, [(jnp.ones(shape),)])

    merged = quant.merge_statistics(block((3, 5, 6), 1), block((3, 2, 6), 2))
    (sampled,) = quant.block_statistics(merged).values()
    assert sampled.inputs.shape == (4, 5, 6)
    with pytest.raises(ValueError, match=r"Sequences with inputs \(4, 6\).*, the other Sequences with inputs \(4, 8\)"):
        quant.merge_statistics(block((3, 5, 6), 1), block((3, 5, 8), 2))


def test_the_name_of_a_single_number_is_said():
    for observer in (quant.minmax(), quant.channel_ranges()):
        model = quant.observe(lambda params, x: quant.tap(x.sum(), "total"), observer=observer)
        with pytest.raises(ValueError, match="site 'total' has a single number as its input; observers take arrays"):
            quant.calibrate(model, {"params": {}}, [(jnp.ones(3),)])


@pytest.mark.parametrize(
    "observer", [quant.minmax(), quant.ema(), quant.percentile(0.9), quant.channel_ranges(16)], ids=lambda x: None
)
def test_arrays_that_an_explicit_mesh_divides(observer):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    x = jax.random.normal(jax.random.key(0), (8, 6))
    whole = seen(x, observer)
    with jax.sharding.use_mesh(mesh) if hasattr(jax.sharding, "use_mesh") else jax.set_mesh(mesh):
        divided = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
        found = seen(divided, observer)
    jax.tree.map(np.testing.assert_array_equal, found, whole)


def test_scales_can_be_learned():
    params = {"a": {"kernel": jax.random.normal(jax.random.key(0), (6, 3))}}
    x = jax.random.normal(jax.random.key(1), (32, 6))
    model = lambda params, x: quant.tap(x, "a") @ params["a"]["kernel"]
    statistics = quant.calibrate(quant.observe(model), {"params": params}, [(x,)])
    quantizers = quant.quantize(quant.static_activations(3), params, statistics)["quant"]
    apply = quant.quantized_apply(model)

    def loss(scales):
        out = apply({"params": params, "quant": quant.with_scales(quantizers, scales)}, x)
        return jnp.mean((out - model(params, x)) ** 2)

    scales = quant.scales_of(quantizers)
    before = loss(scales)
    for _ in range(20):
        scales = jax.tree.map(lambda scale, slope: scale - 0.02 * slope, scales, jax.grad(loss)(scales))
    assert loss(scales) < 0.97 * before


def test_float16_holds_what_smoothing_divides():
    """A channel that never spoke has the smallest scale, by which its gain would overflow."""
    import flax.linen as nn

    from wmq_jax.quant import linen

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4, name="fc", dtype=x.dtype)(nn.LayerNorm(name="norm", dtype=x.dtype)(x))

    block = quant.Block(linen.ModuleApply(Block()), ("fc",), (quant.Pair("norm", ("fc",)),))
    topology = quant.Topology(((("", block),),))
    x = jax.random.normal(jax.random.key(0), (16, 8))
    params = Block().init(jax.random.key(1), x)["params"]
    params["norm"]["scale"] = params["norm"]["scale"].at[0].set(1.5)
    statistics = quant.calibrate(linen.observe(Block(), observer=quant.channel_ranges()), {"params": params}, [(x,)])
    range_ = statistics["fc"]["input"]
    silent = range_._replace(minimum=range_.minimum.at[0].set(0.0), maximum=range_.maximum.at[0].set(0.0))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params)
    smoothed = quant.quantize(quant.smoothquant(1.0), half, {"fc": {"input": silent}}, topology)["params"]
    assert jnp.isfinite(smoothed["norm"]["scale"]).all()
    out, whole = (Block().apply({"params": p}, x.astype(jnp.float16)) for p in (smoothed, half))
    np.testing.assert_allclose(out, whole, rtol=0.02, atol=0.02)
