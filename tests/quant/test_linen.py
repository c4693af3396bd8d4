"""Interception: any Linen model is quantized and calibrated without being edited."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmq_jax import quant
from wmq_jax.quant import linen, paths

pytestmark = pytest.mark.quick


class EveryKind(nn.Module):
    """One of each intercepted kind; the Dense gets its input by keyword."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x)).reshape(x.shape[0], -1, 4)
        x = nn.DenseGeneral((2, 3), name="general")(x)
        x = nn.Dense(5, name="dense")(inputs=x.reshape(*x.shape[:2], 6))
        x = nn.MultiHeadDotProductAttention(num_heads=1, qkv_features=5, name="attention")(x)
        return nn.Einsum((5, 2), "abc,cd->abd", name="einsum")(x)


class Network(nn.Module):
    """A convolution and two Dense layers."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x))
        x = jnp.tanh(nn.Dense(5, name="dense")(inputs=x))
        return nn.Dense(3, name="last")(x)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(x.shape[-1], name="dense")(x)), None


class Head(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, use_bias=False, name="dense")(x)


class Halved(nn.Dense):
    """A subclass that does something to its input: what meets the kernel is another."""

    @nn.compact
    def __call__(self, inputs):
        return super().__call__(nn.relu(inputs) / 2)


class Base(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Halved(3, name="halved")(x)


class Derived(Base):
    def __call__(self, x):
        return super().__call__(x + 1)


class Stack(nn.Module):
    """Layers in a scan: one module path, one slice of each collection a layer."""

    depth: int = 2

    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, linen.QUANT: 0, linen.STATS: 0}
        layers = nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=self.depth)
        return layers(name="layers")(x, None)[0]


def initialized(model, x):
    return jax.jit(model.init)(jax.random.key(0), x)["params"]


def is_quantizer(node):
    return isinstance(node, quant.Quantizer)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (3, 4, 4, 2))


@pytest.fixture(scope="module")
def network(images):
    model = Network()
    params = initialized(model, images)
    statistics = quant.calibrate(linen.observe(model), {"params": params}, [(images,), (2 * images,)])
    return model, params, statistics


def test_every_kind_of_layer_is_a_site(images):
    model = EveryKind()
    params = initialized(model, images)
    statistics = quant.calibrate(linen.observe(model), {"params": params}, [(images,)])
    expected = {
        "conv",
        "general",
        "dense",
        "einsum",
        *(f"attention/{name}" for name in ("query", "key", "value", "out")),
    }
    assert set(quant.site_statistics(statistics)) == expected == set(quant.kernel_sites(params))
    # Each of them is really quantized.
    apply, plain = jax.jit(linen.quantized_apply(model)), model.apply({"params": params}, images)
    off = quant.quantize(quant.static_activations(None), params, statistics)
    for site in expected:
        one = quant.quantize(quant.static_activations(2, rules=[site]), params, statistics)["quant"]
        quantizers = paths.nest(paths.named_leaves(one, is_leaf=is_quantizer), off["quant"])
        assert jnp.abs(apply({"params": params, "quant": quantizers}, images) - plain).max() > 1e-3, site


def test_static_inputs_equal_quantizing_by_hand(network, images):
    """Replaces each input by hand and expects what the interceptor gives."""
    model, params, statistics = network
    variables = quant.quantize(quant.static_activations(4, rules=["conv", "dense"]), params, statistics)
    quantizers = {name: variables["quant"][name]["input"] for name in ("conv", "dense")}
    by_hand = {}

    def spy(next_function, args, kwargs, context):
        name = context.module.name
        if context.method_name == "__call__" and name in quantizers:
            x = args[0] if args else kwargs["inputs"]
            by_hand[name] = x
            return next_function(quant.fake_quant(x, quantizers[name]))
        return next_function(*args, **kwargs)

    with nn.intercept_methods(spy):
        expected = model.apply({"params": params}, images)
    assert set(by_hand) == {"conv", "dense"}
    np.testing.assert_array_equal(linen.quantized_apply(model)(variables, images), expected)
    assert jnp.abs(expected - model.apply({"params": params}, images)).max() > 1e-3


def test_quantizers_that_are_off_change_no_bit(network, images):
    model, params, statistics = network
    plain = jax.jit(model.apply)({"params": params}, images)
    for transform in (quant.static_activations(None), quant.dynamic_activations(16)):
        variables = quant.quantize(transform, params, statistics)
        np.testing.assert_array_equal(jax.jit(linen.quantized_apply(model))(variables, images), plain)


def test_no_element_of_a_batch_influences_another(network, images):
    model, params, statistics = network
    for transform in (quant.dynamic_activations(4), quant.static_activations(4)):
        variables = quant.quantize(transform, params, statistics)
        apply = jax.jit(linen.quantized_apply(model))
        spoiled = images.at[1:].multiply(100)
        np.testing.assert_array_equal(apply(variables, spoiled)[0], apply(variables, images)[0])


def test_the_context_ends_with_its_block(network, images):
    model, params, statistics = network
    variables = quant.quantize(quant.static_activations(2), params, statistics)
    plain = model.apply({"params": params}, images)
    quantized = linen.quantized_apply(model)(variables, images)
    np.testing.assert_array_equal(model.apply(variables, images), plain)
    assert jnp.abs(quantized - plain).max() > 1e-3


def test_statistics_are_the_ranges_of_what_was_seen(network, images):
    model, params, statistics = network
    seen = statistics["conv"]["input"]
    assert (int(seen.count), float(seen.minimum), float(seen.maximum)) == (
        2,
        float((2 * images).min()),
        float((2 * images).max()),
    )
    parts = [quant.calibrate(linen.observe(model), {"params": params}, [(scale * images,)]) for scale in (1, 2)]
    merged = quant.merge_statistics(*parts)
    jax.tree.map(np.testing.assert_array_equal, merged, statistics)
    continued = quant.calibrate(linen.observe(model), {"params": params}, [(2 * images,)], parts[0])
    jax.tree.map(np.testing.assert_array_equal, continued, statistics)


def test_batches_of_other_shapes_and_no_batches(network, images):
    model, params, _ = network
    observe = linen.observe(model)
    statistics = quant.calibrate(observe, {"params": params}, [(images[:1],), (images[1:],)])
    assert float(statistics["conv"]["input"].maximum) == float(images.max())
    with pytest.raises(ValueError, match="calibration got no batches"):
        quant.calibrate(observe, {"params": params}, [])


def test_nan_in_calibration_is_reported_with_its_site(network, images):
    model, params, _ = network
    statistics = quant.calibrate(linen.observe(model), {"params": params}, [(images.at[0, 0, 0, 0].set(jnp.nan),)])
    with pytest.raises(ValueError, match=r"calibration statistic 'conv/minimum' has 1 NaN"):
        quant.quantize(quant.static_activations(8, rules=["conv"]), params, statistics)


def test_scanned_layers_have_statistics_and_bits_of_their_own():
    model, x = Stack(), jax.random.normal(jax.random.key(2), (5, 6))
    params = initialized(model, x)
    statistics = quant.calibrate(linen.observe(model), {"params": params}, [(x,)])
    bits = jnp.array([3, 8])
    variables = quant.quantize(quant.static_activations(bits), params, statistics)
    exact = hidden = x
    for layer in range(2):
        kernel, bias = (params["layers"]["dense"][name][layer] for name in ("kernel", "bias"))
        quantizer = quant.static_quantizer(exact.min(), exact.max(), int(bits[layer]))
        hidden = jnp.tanh(quant.fake_quant(hidden, quantizer) @ kernel + bias)
        exact = jnp.tanh(exact @ kernel + bias)
    np.testing.assert_allclose(linen.quantized_apply(model)(variables, x), hidden, atol=1e-6)
    swapped = quant.quantize(quant.static_activations(bits[::-1]), params, statistics)
    assert jnp.abs(linen.quantized_apply(model)(swapped, x) - hidden).max() > 1e-2


def test_scanned_layers_search_ranges_of_their_own():
    model, x = Stack(), jax.random.normal(jax.random.key(2), (64, 6)) ** 3
    params = initialized(model, x)
    statistics = quant.calibrate(linen.observe(model, observer=quant.channel_ranges(64)), {"params": params}, [(x,)])
    found = quant.quantize(quant.static_activations(3, range="omse"), params, statistics)["quant"]
    stacked = statistics["layers"]["dense"]["input"]
    for layer in range(2):
        alone = {"dense": {"input": jax.tree.map(lambda leaf: leaf[layer], stacked)}}
        expected = quant.quantize(quant.static_activations(3, range="omse"), params, alone)["quant"]["dense"]["input"]
        ours = jax.tree.map(lambda leaf: leaf[layer], found["layers"]["dense"]["input"])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, expected)
    assert linen.quantized_apply(model)({"params": params, "quant": found}, x).shape == x.shape


def test_samples_of_scanned_blocks_merge_layer_by_layer():
    model, params = Stack(), initialized(Stack(), jnp.ones((5, 6)))
    parts = []
    for seed in range(2):
        x = jax.random.normal(jax.random.key(seed), (5, 6))
        observe = linen.observe(model, blocks=["layers"], block_observer=quant.sequences(3, seed=seed))
        parts.append(quant.block_statistics(quant.calibrate(observe, {"params": params}, [(x,)]))["layers"])
    merged = quant.merge_statistics(*parts)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, parts[0])
    for layer in range(2):
        offered = jnp.concatenate([part.priority[layer] for part in parts])
        np.testing.assert_array_equal(jnp.sort(merged.priority[layer]), jnp.sort(offered)[-3:])


def test_statistics_that_do_not_fit_are_refused():
    model, x = Stack(), jnp.ones((5, 6))
    variables = {"params": initialized(model, x)}
    ranges = quant.calibrate(linen.observe(model), variables, [(x,)])
    channels = linen.observe(model, observer=quant.channel_ranges())
    message = "statistics do not fit each other: of 'layers/dense/input' one has Range, the other ChannelRange"
    with pytest.raises(ValueError, match=message):
        quant.calibrate(channels, variables, [(x,)], statistics=ranges)
    with pytest.raises(ValueError, match=message):
        quant.merge_statistics(ranges, quant.calibrate(channels, variables, [(x,)]))
    with pytest.raises(ValueError, match="of 'layers/dense/input' one has Range, the other nothing"):
        quant.merge_statistics(ranges, {})


def test_an_input_that_cannot_be_quantized_is_named():
    quantizers = quant.quantize(quant.dynamic_activations(8), {"dense": {"kernel": jnp.ones((6, 2))}})
    with pytest.raises(TypeError, match="site 'dense': fake_quant takes a floating-point array .* not int32"):
        linen.quantized_apply(Head())(quantizers, jnp.ones((3, 6), jnp.int32))


def test_scanned_kernels_get_a_scale_per_layer_and_channel():
    model, x = Stack(), jnp.ones((5, 6))
    params = initialized(model, x)
    transform = quant.chain(quant.rtn(3, output_axes=(0, -1)), quant.dynamic_activations(jnp.array([8, 4])))
    variables = quant.quantize(transform, params)
    kernel = params["layers"]["dense"]["kernel"]
    for layer in range(2):
        expected = quant.fake_quant_weight(kernel[layer], quant.WeightSpec(3))
        np.testing.assert_array_equal(variables["params"]["layers"]["dense"]["kernel"][layer], expected)
    assert linen.quantized_apply(model)(variables, x).shape == x.shape


def test_rows_of_a_table_run_as_they_do_alone(network, images):
    model, params, statistics = network
    transforms = [quant.chain(), quant.static_activations(3), quant.dynamic_activations(3), quant.static_activations(8)]
    off = quant.quantize(quant.dynamic_activations(None), params)["quant"]
    rows = [quant.quantize(transform, params, statistics)["quant"] or off for transform in transforms]
    table = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    apply = linen.quantized_apply(model)
    run = jax.jit(lambda table: jax.lax.map(lambda row: apply({"params": params, "quant": row}, images), table))
    one = jax.jit(lambda row: apply({"params": params, "quant": row}, images))
    for got, row in zip(run(table), rows):
        np.testing.assert_array_equal(got, one(row))


def test_half_precision_is_not_promoted(network, images):
    _, params, statistics = network
    seen = []

    def spy(next_function, args, kwargs, context):
        output = next_function(*args, **kwargs)
        if context.method_name == "__call__":
            seen.append(output.dtype)
        return output

    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    transform = quant.chain(quant.rtn(8, rules=["dense/kernel"]), quant.static_activations(8))
    variables = quant.quantize(transform, half, statistics)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype(jnp.bfloat16)}
    with nn.intercept_methods(spy):
        linen.quantized_apply(Network())(variables, images.astype(jnp.bfloat16))
    assert seen and set(seen) == {jnp.dtype(jnp.bfloat16)}


def test_straight_through_gradients_reach_inputs_and_scales(network, images):
    model, params, statistics = network
    variables = quant.quantize(quant.static_activations(4), params, statistics)

    def loss(scale, x, rounding):
        quantizer = variables["quant"]["dense"]["input"]._replace(scale=scale)
        tree = {**variables["quant"], "dense": {"input": quantizer}}
        return (linen.quantized_apply(model, rounding=rounding)({"params": params, "quant": tree}, x) ** 2).sum()

    scale = variables["quant"]["dense"]["input"].scale
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
    to_scale, to_x = gradient(scale, images, quant.straight_through_round)
    assert jnp.isfinite(to_scale) and to_scale != 0 and jnp.abs(to_x).max() > 0
    assert jnp.abs(gradient(scale, images, jnp.round)[1]).max() == 0


class HiddenStack(nn.Module):
    """A stem, layers in a scan that carries parameters alone, and a head; ``head`` is a method too."""

    depth: int = 3

    def setup(self):
        self.stem, self.last, self.norm = nn.Dense(6), nn.Dense(2), nn.LayerNorm()
        layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth)
        self.layers = layers()

    def __call__(self, x):
        return self.head(self.layers(self.stem(x), None)[0])

    def head(self, x):
        return self.last(self.norm(x))


@pytest.fixture(scope="module")
def scanned():
    x = jax.random.normal(jax.random.key(2), (5, 4))
    params = initialized(HiddenStack(), x)
    observe = linen.observe(HiddenStack(), None, quant.channel_ranges(4))
    return x, params, quant.calibrate(observe, {"params": params}, [(x,), (2 * x,)])


@pytest.mark.parametrize("static", [True, False])
def test_layers_that_a_scan_hides_are_quantized_too(static, scanned):
    x, params, statistics = scanned
    seen = quant.site_statistics(statistics)
    assert set(seen) == {"stem", "layers/dense", "last"}
    assert seen["layers/dense"].count.tolist() == [2, 2, 2]
    transform = quant.static_activations(3) if static else quant.dynamic_activations(3)
    variables = quant.quantize(transform, params, statistics)

    def dense(site, x, layer=None):
        weights, quantizer = params, variables["quant"]
        for key in site.split("/"):
            weights, quantizer = weights[key], quantizer[key]
        weights, quantizer = weights, quantizer["input"]
        if layer is not None:
            weights = jax.tree.map(lambda leaf: leaf[layer], weights)
            quantizer = jax.tree.map(lambda leaf: leaf[layer] if leaf.ndim else leaf, quantizer)
        return quant.fake_quant(x, quantizer) @ weights["kernel"] + weights["bias"]

    hidden = dense("stem", x)
    for layer in range(3):
        hidden = jnp.tanh(dense("layers/dense", hidden, layer))
    expected = dense("last", nn.LayerNorm().apply({"params": params["norm"]}, hidden))
    apply = linen.quantized_apply(HiddenStack())
    np.testing.assert_allclose(jax.jit(apply)(variables, x), expected, atol=1e-5)
    np.testing.assert_allclose(apply(variables, x), expected, atol=1e-5)


def test_a_recurrent_network_has_statistics_of_every_step():
    model, x = nn.RNN(nn.LSTMCell(3)), jax.random.normal(jax.random.key(2), (2, 4, 5))
    params = initialized(model, x)
    statistics = quant.calibrate(linen.observe(model), {"params": params}, [(x,)])
    seen = quant.site_statistics(statistics)
    np.testing.assert_array_equal(seen["cell/ii"].maximum, x.max((0, 2)))
    variables = quant.quantize(quant.static_activations(3), params, statistics)
    plain = model.apply({"params": params}, x)
    assert jnp.abs(linen.quantized_apply(model)(variables, x) - plain).max() > 1e-2


def test_sites_that_calibration_cannot_see_may_be_asked_for():
    """An OptimizedLSTMCell multiplies its kernels itself, all gates at once."""
    model, x = nn.Sequential([nn.Dense(5), nn.RNN(nn.OptimizedLSTMCell(3))]), jnp.ones((2, 4, 5))
    params = initialized(model, x)
    statistics = quant.calibrate(linen.observe(model), {"params": params}, [(x,)])
    (dense,) = quant.site_statistics(statistics)
    make = lambda **settings: quant.quantize(quant.static_activations(8, **settings), params, statistics)
    chex.assert_trees_all_equal(make(sites=iter([dense])), make())
    for transform in (quant.static_activations, quant.dynamic_activations):
        with pytest.raises(ValueError, match=f"^sites must be names of sites, not the one string '{dense}'$"):
            transform(8, sites=dense)
    with pytest.raises(ValueError, match=f"calibration saw no site '.*cell/.*', which was asked for; it saw {dense}$"):
        make(sites=quant.kernel_sites(params))


def test_a_quantizer_that_nothing_uses_is_refused(scanned, network, images):
    x, params, statistics = scanned
    apply = linen.quantized_apply(HiddenStack())
    one = quant.quantize(quant.static_activations(8), params, statistics)["quant"]["stem"]
    for site in ("stern", "norm"):
        with pytest.raises(ValueError, match=f"nothing uses the quantizer of site '{site}', which is no Dense"):
            apply({"params": params, "quant": {site: one}}, x)
    model, params, _ = network
    of_variables = quant.quantize(quant.dynamic_activations(8), {"params": params})["quant"]
    with pytest.raises(ValueError, match="'params/conv', .* this call has conv, dense, last"):
        jax.jit(linen.quantized_apply(model))({"params": params, "quant": of_variables}, images)


def test_a_method_may_need_a_part_of_the_model(scanned):
    _, params, statistics = scanned
    x, apply = jnp.linspace(-1, 1, 12).reshape(2, 6), linen.quantized_apply(HiddenStack())
    variables = quant.quantize(quant.static_activations(2), params, statistics)
    got = jax.jit(lambda variables, x: apply(variables, x, method="head"))(variables, x)
    assert jnp.abs(got - HiddenStack().apply({"params": params}, x, method="head")).max() > 1e-2
    with pytest.raises(ValueError, match="site 'stern'"):
        apply(
            {"params": params, "quant": {**variables["quant"], "stern": variables["quant"]["stem"]}}, x, method="head"
        )


def test_mistakes_in_calibration_are_said_in_one_sentence(network, images):
    model, params, _ = network
    for function in (linen.observe(model), quant.observe(lambda params, x: quant.tap(x, "site"))):
        for batch, kind in ((images, "ArrayImpl"), ({"x": images}, "dict")):
            sentence = rf"a batch is a tuple of the model's arguments, \(x,\) for a single one, not a {kind}$"
            with pytest.raises(TypeError, match=sentence):
                quant.calibrate(function, {"params": params}, [batch])
        sentence = "variables are {'params': parameters}, but these have no 'params': keys conv, dense, last(\n|$)"
        with pytest.raises(ValueError, match=sentence):
            quant.calibrate(function, params, [(images,)])
    with pytest.raises(TypeError, match="merge_statistics takes the statistics of one or more streams, got none$"):
        quant.merge_statistics()


# Made once: what is compiled is remembered with the class.
CompiledDense, CompiledHead = nn.jit(nn.Dense), nn.jit(Head)


class Jitted(nn.Module):
    """A model that compiles a part of itself, as large ones do; its block gets its input by keyword."""

    @nn.compact
    def __call__(self, x):
        x = CompiledDense(6, name="first")(x)
        return CompiledHead(name="second")(x=x)


def test_a_part_compiled_before_is_observed_and_quantized():
    model, x = Jitted(), jax.random.normal(jax.random.key(2), (4, 6))
    params = model.init(jax.random.key(0), x)["params"]
    exact = model.apply({"params": params}, x)
    observed = linen.observe(model, observer=quant.minmax(), blocks=["second"])
    for _ in range(2):
        statistics = observed({"params": params}, None, x)
        assert set(quant.site_statistics(statistics)) == {"first", "second/dense"}
        hidden = x @ params["first"]["kernel"] + params["first"]["bias"]
        chex.assert_trees_all_close(statistics["second"]["block-input"].inputs[:4].sum(), hidden.sum(), rtol=1e-4)
    variables = quant.quantize(quant.static_activations(3), params, statistics)
    got = [linen.quantized_apply(model)(variables, x) for _ in range(2)]
    straight = linen.quantized_apply(model, quant.straight_through_round)
    gradient = jax.grad(lambda x: straight(variables, x).sum())(x)
    assert jnp.abs(got[0] - exact).max() > 1e-2
    assert jnp.abs(gradient).max() > 0  # a trace with plain rounding would have none
    chex.assert_trees_all_equal(*got)
    chex.assert_trees_all_equal(model.apply({"params": params}, x), exact)


@pytest.mark.parametrize("mutable", [False, "batch", ["batch"], True])
def test_what_a_caller_may_mutate_stays_as_it_says(mutable):
    model, x = Head(), jnp.ones((2, 3))
    variables = model.init(jax.random.key(0), x)
    got = linen.quantized_apply(model)(variables, x, mutable=mutable)
    chex.assert_trees_all_equal(got, model.apply(variables, x, mutable=mutable))


def test_streams_that_drew_alike_do_not_merge(network, images):
    model, params, _ = network
    gather = lambda seed: quant.calibrate(
        linen.observe(model, observer=quant.channel_ranges(tokens=64, seed=seed)), {"params": params}, [(images,)]
    )
    sentence = "two streams sampled 'conv/input' by the same draws; give every stream's observer a seed= of its own$"
    with pytest.raises(ValueError, match=sentence):
        quant.merge_statistics(gather(1), gather(2), gather(1))
    quant.merge_statistics(gather(1), gather(2))


def test_one_quantizer_for_scanned_layers_is_refused():
    model, x = Stack(), jnp.ones((2, 4))
    params = model.init(jax.random.key(0), x)["params"]
    variables = quant.quantize(quant.dynamic_activations(8), params)
    sentence = (
        "quantizer of site 'layers/dense', or another, has no axis for the scan or vmap that carries 'quant'; give"
    )
    with pytest.raises(ValueError, match=sentence):
        linen.quantized_apply(model)(variables, x)


def test_what_meets_the_kernel_of_a_subclass_is_observed_and_quantized_once():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Derived(name="block")(x)

    model, x = Model(), jax.random.normal(jax.random.key(0), (4, 6))
    params = model.init(jax.random.key(1), x)["params"]
    observe = linen.observe(model, blocks=["block"], observer=quant.channel_ranges())
    statistics = quant.calibrate(observe, {"params": params}, [(x,)])
    met = nn.relu(x + 1) / 2
    seen = quant.site_statistics(statistics)["block/halved"]
    assert seen.count == 1
    chex.assert_trees_all_close((seen.minimum, seen.maximum), (met.min(0), met.max(0)))
    sampled = quant.block_statistics(statistics)["block"]
    assert sampled.count == 1
    chex.assert_trees_all_close(sampled.inputs[:4].sum(), x.sum(), rtol=1e-4)
    for transform in (quant.static_activations(3), quant.dynamic_activations(3)):
        variables = quant.quantize(transform, params, statistics)
        rounded = quant.fake_quant(met, variables["quant"]["block"]["halved"]["input"])
        dense = params["block"]["halved"]
        expected = rounded @ dense["kernel"] + dense["bias"]
        chex.assert_trees_all_close(linen.quantized_apply(model)(variables, x), expected, rtol=1e-5)


@pytest.mark.parametrize("axis", [1, (1, 2), (2, 1), (-1, 1)])
def test_channels_are_the_axes_that_a_general_dense_contracts(axis):
    """Wherever they stand: a token is the rest."""
    model, x = nn.DenseGeneral(5, axis=axis), jax.random.normal(jax.random.key(0), (2, 4, 6, 4))
    x = x.at[0].multiply(1000.0)
    params = model.init(jax.random.key(1), x)["params"]
    observe = linen.observe(model, observer=quant.channel_ranges())
    (seen,) = quant.site_statistics(quant.calibrate(observe, {"params": params}, [(x,)])).values()
    axes = (axis,) if isinstance(axis, int) else axis
    moved = jnp.moveaxis(x, axes, range(-len(axes), 0))
    joined = moved.reshape(*moved.shape[: 4 - len(axes)], -1)
    np.testing.assert_array_equal(seen.maximum, joined.reshape(-1, joined.shape[-1]).max(0))
    variables = quant.quantize(quant.dynamic_activations(4), params)
    rounded = quant.fake_quant(joined, variables["quant"]["input"]).reshape(moved.shape)
    expected = model.apply({"params": params}, jnp.moveaxis(rounded, range(-len(axes), 0), axes))
    chex.assert_trees_all_close(linen.quantized_apply(model)(variables, x), expected, rtol=1e-4, atol=1e-3)


def test_a_block_may_have_a_module_called_block():
    class Stage(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="block")(x)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Stage(name="stage")(x)

    model, x = Model(), jnp.ones((2, 3))
    params = model.init(jax.random.key(1), x)["params"]
    statistics = quant.calibrate(linen.observe(model, blocks=["stage"]), {"params": params}, [(x,), (x,)])
    assert list(quant.site_statistics(statistics)) == ["stage/block"]
    assert list(quant.block_statistics(statistics)) == ["stage"]


class Reused(nn.Module):
    """One layer, outside of a scan and inside."""

    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(4, name="dense")
        step = lambda module, carry, _: (dense(carry), None)
        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False}, length=4)
        return scan(self, dense(x * 100) / 100, None)[0]


def test_a_layer_inside_a_scan_that_hides_it_and_outside_is_one_or_refused():
    model, x = Reused(), jnp.ones((2, 4))
    params = model.init(jax.random.key(0), x)["params"]
    sentence = "site 'dense' is called inside a transform that hides 'stats' from it, and outside of it; quant.observe"
    with pytest.raises(ValueError, match=sentence):
        quant.calibrate(linen.observe(model), {"params": params}, [(x,)])
    function = linen.ModuleApply(model)
    statistics = quant.calibrate(quant.observe(function), {"params": params}, [(x,)])
    seen = quant.site_statistics(statistics)["dense"]
    assert seen.count == 5 and seen.maximum == 100, "one call outside and four inside"
    variables = quant.quantize(quant.static_activations(15), params, statistics)
    got = quant.quantized_apply(function)(variables, x)
    np.testing.assert_allclose(got, model.apply({"params": params}, x), atol=0.05)


class Mapped(nn.Module):
    """A layer under a bare transform of JAX."""

    def setup(self):
        self.dense = nn.Dense(4)

    def __call__(self, x):
        return jax.vmap(self.dense)(x)


def test_a_layer_under_a_bare_transform_is_seen_as_a_tap():
    model, x = Mapped(), jax.random.normal(jax.random.key(0), (3, 5, 4))
    params = model.init(jax.random.key(0), x[0])["params"]
    statistics = quant.calibrate(linen.observe(model), {"params": params}, [(x,)])
    seen = quant.site_statistics(statistics)["dense"]
    assert (seen.minimum, seen.maximum, seen.count) == (x.min(), x.max(), 1)
    variables = quant.quantize(quant.static_activations(4), params, statistics)
    rounded = quant.fake_quant(x, quant.static_quantizer(x.min(), x.max(), 4))
    np.testing.assert_allclose(
        linen.quantized_apply(model)(variables, x), model.apply({"params": params}, rounded), rtol=1e-5
    )


def test_steps_of_time_may_share_a_statistic():
    """And then a recurrent model's ranges are of sequences of any length."""
    model, x = nn.RNN(nn.GRUCell(4)), jax.random.normal(jax.random.key(0), (2, 6, 3))
    params = model.init(jax.random.key(0), x)["params"]
    statistics = quant.calibrate(linen.observe(model, shared=[".*"]), {"params": params}, [(x,)])
    assert all(not seen.count.shape for seen in quant.site_statistics(statistics).values())
    variables = quant.quantize(quant.static_activations(8), params, statistics)
    apply = linen.quantized_apply(model)
    np.testing.assert_allclose(apply(variables, x[:, :3]), apply(variables, x)[:, :3], rtol=1e-6)


def test_an_error_of_the_model_stays_its_own():
    class Wrong(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(x.shape[2])(x)

    params = {"Dense_0": {"kernel": jnp.ones((3, 3)), "bias": jnp.zeros(3)}}
    with pytest.raises(IndexError, match="tuple index out of range"):
        linen.quantized_apply(Wrong())(quant.quantize(quant.dynamic_activations(8), params), jnp.ones((2, 3)))
