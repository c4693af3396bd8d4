"""Variants of DINO-WM: grammar, the stacked table, sizes, calibration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.tiny import random_model
from tests.quick_jit import compilation, quick_jit
from wmq_jax import quant, quantized
from wmq_jax.models import PredictorConfig, ViTConfig, WorldModel, WorldModelConfig, official_config
from wmq_jax.quant import paths
from wmq_jax.quantized import ModuleSpec, VariantSpec, parse_variant

pytestmark = pytest.mark.quick

CONFIG = WorldModelConfig(
    encoder=ViTConfig(width=12, depth=2, heads=2, mlp_dim=20, table_grid=2),
    predictor=PredictorConfig(depth=1, heads=2, dim_head=6, mlp_dim=24),
    decoder=None,
    proprio_dim=2,
    action_dim=4,
    image_size=32,
    num_hist=2,
    proprio_emb_dim=2,
    action_emb_dim=2,
)
TEXTS = (
    "fp",
    "w4",
    "w4g8",
    "w8a8-tensor",
    "w8a8-token",
    "w3a4-token",
    "encoder=w4",
    "predictor=w4",
    "encoder=w8a6-tensor,predictor=w4g8",
    "w16a8-token",
    "omse:w4a4-tensor",
    "smoothquant:w4a8-tensor",
    "awq:w4g8",
)


def rollout_inputs(seed, batch=2, frames=1, actions=2):
    keys = jax.random.split(jax.random.key(seed), 3)
    visual = jax.random.uniform(keys[0], (batch, frames, 32, 32, 3), minval=-1)
    return visual, jax.random.normal(keys[1], (batch, frames, 2)), jax.random.normal(keys[2], (batch, actions, 4))


@pytest.fixture(scope="module")
def world():
    """(model, params, statistics, table of TEXTS)."""
    model, variables = random_model(CONFIG)
    params, specs = variables["params"], [parse_variant(text) for text in TEXTS]
    with compilation(quick=True):
        statistics = quantized.calibrate(model, variables, [rollout_inputs(0), rollout_inputs(1)])
        return model, params, statistics, quantized.build_variants(CONFIG, params, specs, statistics)


@pytest.fixture(scope="module")
def rollout(world):
    apply = quantized.quantized_apply(world[0])
    return jax.jit(lambda variables, *inputs: apply(variables, *inputs, method="rollout").visual)


def row(table, text):
    return jax.tree.map(lambda leaf: leaf[TEXTS.index(text)], table)


@pytest.mark.parametrize(
    "text, name, canonical",
    [
        ("fp", "FP32", "fp"),
        ("w16", "FP32", "fp"),
        ("w32a16", "FP32", "fp"),
        ("w4", "W4", "w4"),
        ("rtn:w4", "W4", "w4"),
        ("omse:w4a8", "OMSE W4A8 per-tensor", "omse:w4a8-tensor"),
        (
            "encoder=AWQ:w4g32,predictor=smoothquant:w8a8-token",
            "encoder AWQ W4 g32, predictor SmoothQuant W8A8 per-token",
            "encoder=awq:w4g32,predictor=smoothquant:w8a8-token",
        ),
        (" W4G32 ", "W4 g32", "w4g32"),
        ("w8a8", "W8A8 per-tensor", "w8a8-tensor"),
        ("w4g32a8-token", "W4A8 g32 per-token", "w4g32a8-token"),
        ("w16a8-token", "W16A8 per-token", "w16a8-token"),
        ("encoder=w4", "encoder W4", "encoder=w4"),
        ("predictor=w4,encoder=fp", "predictor W4", "predictor=w4"),
        ("encoder=w4,predictor=w4", "W4", "w4"),
        ("encoder=w8, predictor=w4g16", "encoder W8, predictor W4 g16", "encoder=w8,predictor=w4g16"),
    ],
)
def test_grammar(text, name, canonical):
    spec = parse_variant(text)
    assert (spec.name, spec.text) == (name, canonical)
    assert parse_variant(spec.text) == spec


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "expected 'fp', or"),
        ("w", "expected 'fp', or"),
        ("4", "expected 'fp', or"),
        ("w4a8-", "expected 'fp', or"),
        ("w1", r"bits must be 2\.\.15, or None, 16 or 32 for no quantization; got 1"),
        ("w8a17", "bits must be .* got 17"),
        ("w4g0", "group_size must be a positive integer or None, not 0"),
        ("w16g32", "a group size or a method needs weight bits below 16"),
        ("w4a16-token", "an activation granularity needs activation bits below 16"),
        ("w8a8-row", "per tensor or token, not per row"),
        ("magic:w4", "there is no method 'magic'; the methods are awq, omniquant, omse, rtn, smoothquant"),
        ("decoder=w4", "the modules that are quantized are encoder and predictor; each is named at most once"),
        (
            "encoder=w4,encoder=w8",
            "the modules that are quantized are encoder and predictor; each is named at most once",
        ),
        ("encoder=w4,w8", "encoder and predictor; each is named at most once"),
    ],
)
def test_bad_variants_are_quoted_with_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=f"variant '{text}': .*{message}"):
        parse_variant(text)


def test_json_of_a_variant():
    assert parse_variant("predictor=w4g8a8-token").to_json() == {
        "name": "predictor W4A8 g8 per-token",
        "spec": "predictor=w4g8a8-token",
        "encoder": dict.fromkeys(("weight_bits", "group_size", "act_bits", "act_granularity", "method")),
        "predictor": {"weight_bits": 4, "group_size": 8, "act_bits": 8, "act_granularity": "token", "method": "rtn"},
    }


def test_sites_are_the_linear_layers_of_the_blocks(world):
    _, params, statistics, _ = world
    ours = {site for sites in quantized.sites(CONFIG).values() for site in sites}
    blocks = {site for site in quant.kernel_sites(params) if "blocks_" in site or "layers_" in site}
    assert ours == blocks and ours <= set(quant.site_statistics(statistics))
    full = quantized.sites(official_config("pusht"))
    assert {module: len(sites) for module, sites in full.items()} == {"encoder": 48, "predictor": 24}


def test_a_single_head_of_full_width_has_no_output_projection():
    config = CONFIG.replace(predictor=PredictorConfig(depth=1, heads=1, dim_head=CONFIG.predictor_dim, mlp_dim=8))
    model, inputs = WorldModel(config), rollout_inputs(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs[0], inputs[1], inputs[2][:, :1])["params"]
    blocks = {site for site in quant.kernel_sites(shapes) if "blocks_" in site or "layers_" in site}
    assert blocks == {site for sites in quantized.sites(config).values() for site in sites}


def test_every_row_is_what_the_transforms_give_alone(world):
    _, params, statistics, table = world
    for text in TEXTS:
        spec, got = parse_variant(text), row(table, text)
        for module in quantized.MODULES:
            part, kernels = getattr(spec, module), quantized.site_rules(CONFIG, module, "kernel")
            method = quantized.METHODS[part.method or "rtn"]
            weights = method.transform(part, kernels, quantized.MethodSettings())
            inputs = quantized.site_rules(CONFIG, module)
            if part.act_granularity == "tensor":
                activations = quant.static_activations(part.act_bits, range=method.act_range, rules=inputs)
            else:
                activations = quant.dynamic_activations(part.act_bits, rules=inputs)
            own = {module: params[module]}, {module: statistics[module]}
            topology = quantized.topology(CONFIG).restricted(module)
            alone = quant.quantize(quant.chain(weights, activations), *own, topology)
            jax.tree.map(np.testing.assert_array_equal, got["params"][module], alone["params"][module])
            named = paths.named_leaves(alone["quant"])
            for name, leaf in paths.named_leaves({module: got["quant"][module]}).items():
                off = np.asarray(named[f"{name.rpartition('/')[0]}/mode"]) == quant.OFF
                if name.endswith("/mode") or not off:
                    np.testing.assert_array_equal(leaf, named[name], err_msg=f"{text} {name}")


def test_full_precision_is_the_model_bit_for_bit(world, rollout):
    model, params, _, table = world
    inputs = rollout_inputs(2)
    plain = jax.jit(lambda params, *inputs: model.apply({"params": params}, *inputs, method="rollout").visual)
    np.testing.assert_array_equal(rollout(row(table, "fp"), *inputs), plain(params, *inputs))


def test_encoder_and_predictor_are_apart(world):
    _, params, _, table = world
    for text, touched in (("encoder=w4", "encoder"), ("predictor=w4", "predictor")):
        changed = jax.tree.map(lambda a, b: bool((a != b).any()), row(table, text)["params"], params)
        kernels = {name.removesuffix("/kernel") for name, differs in paths.named_leaves(changed).items() if differs}
        assert kernels == set(quantized.sites(CONFIG)[touched])


def test_rows_run_in_a_loop_as_they_do_alone(world, rollout):
    apply = quantized.quantized_apply(world[0])
    inputs, table = rollout_inputs(2), world[3]
    loop = jax.jit(lambda table: jax.lax.map(lambda one: apply(one, *inputs, method="rollout").visual, table))
    outputs = loop(table)
    for got, text in zip(outputs, TEXTS):
        np.testing.assert_allclose(got, rollout(row(table, text), *inputs), atol=1e-5, err_msg=text)
    distinct = {np.asarray(output).tobytes() for output in outputs}
    assert len(distinct) == len(TEXTS)


def test_fewer_bits_do_more_damage(world, rollout):
    _, params, statistics, _ = world
    inputs = rollout_inputs(3)
    specs = [parse_variant(f"w{bits}a{bits}-{kind}") for kind in quantized.GRANULARITIES for bits in (3, 5, 8, 12)]
    table = quantized.build_variants(CONFIG, params, [VariantSpec(), *specs], statistics)
    exact, *outputs = [rollout(jax.tree.map(lambda leaf: leaf[i], table), *inputs) for i in range(len(specs) + 1)]
    errors = [float(jnp.linalg.norm(output - exact)) for output in outputs]
    assert errors[:4] == sorted(errors[:4], reverse=True) and errors[4:] == sorted(errors[4:], reverse=True)


def test_compilations_do_not_grow_with_variants_or_bits(world):
    _, params, statistics, _ = world
    compiled = []

    def count(event, *args, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    few = [parse_variant(text) for text in ("fp", "w4", "w4g8", "w8a8-tensor", "w8a8-token")]
    many = [
        parse_variant(f"w{bits}{group}a{bits}-{kind}")
        for bits in range(2, 16)
        for group in ("", "g8")
        for kind in quantized.GRANULARITIES
    ]
    quantized.build_variants(CONFIG, params, few, statistics)
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        quantized.build_variants(CONFIG, params, many, statistics)
        assert not compiled
        quantized.build_variants(CONFIG, params, [parse_variant("w4g6")], statistics)
        assert compiled, "the counter counts"
    finally:
        jax.monitoring.unregister_event_duration_listener(count)


def test_tables_with_and_without_statistics_have_one_structure(world):
    _, params, _, table = world
    plain = quantized.build_variants(CONFIG, params, [VariantSpec()] * len(TEXTS))
    assert jax.tree.structure(plain) == jax.tree.structure(table)
    shapes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (plain, table)]
    assert shapes[0] == shapes[1]


def test_statistics_are_ranges_over_all_batches(world):
    seen = quant.site_statistics(world[2])
    batches = [rollout_inputs(0), rollout_inputs(1)]
    # Each rollout of one frame under two actions calls the encoder once and the predictor twice.
    assert seen["encoder/blocks_0/attn/qkv"].count == 2 and seen["predictor/layers_0/attn/to_qkv"].count == 4
    for site, part in (("action_encoder/proj", 2), ("proprio_encoder/proj", 1)):
        values = [batch[part] for batch in batches]
        assert seen[site].range() == (np.min(values), np.max(values))


def test_gradients_pass_the_rounding_of_activations_on_request(world):
    model, _, _, table = world
    visual, proprio, actions = rollout_inputs(2)

    def gradient(text, straight_through):
        apply = quantized.quantized_apply(model, straight_through)
        loss = lambda actions: (apply(row(table, text), visual, proprio, actions, method="rollout").visual ** 2).sum()
        return quick_jit(jax.grad(loss))(actions)

    exact, passed, stopped = gradient("fp", False), gradient("w16a8-token", True), gradient("w16a8-token", False)
    distance = lambda a: float(jnp.linalg.norm(a - exact) / jnp.linalg.norm(exact))
    assert distance(passed) < 0.15 < distance(stopped)


def test_size(world):
    """Recounted weight by weight."""
    _, params, _, _ = world
    leaves = paths.named_leaves(params)
    full = sum(leaf.size * 4 for leaf in leaves.values())
    assert quantized.size_bytes(CONFIG, params, VariantSpec()) == full
    for text in ("w3", "w4g8", "predictor=w8a8-tensor"):
        spec, expected = parse_variant(text), full
        for module, names in quantized.sites(CONFIG).items():
            part = getattr(spec, module)
            for site in names if part.weight_bits else ():
                inputs, outputs = leaves[f"{site}/kernel"].shape
                groups = 1 if part.group_size is None else -(-inputs // part.group_size)
                packed = -(-inputs * outputs * part.weight_bits // 8)
                expected += packed + 4 * groups * outputs - 4 * inputs * outputs
                expected += 8 if part.act_granularity == "tensor" else 0
        assert quantized.size_bytes(CONFIG, params, spec) == expected


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("smoothquant", dict(smoothquant_alpha=0.8)),
        ("awq", dict(awq_scaled=".*(fc1|to_qkv)")),
        ("omniquant", dict(omniquant_epochs=1)),
        ("omniquant", dict(omniquant_epochs=0, omniquant_alpha=0.8)),
    ],
)
def test_settings_of_methods_change_what_they_do(world, method, changes):
    _, params, statistics, _ = world
    spec, other = parse_variant(f"predictor={method}:w4"), parse_variant("predictor=rtn:w4")
    build = lambda spec, **changes: quantized.build_variant(
        CONFIG, params, spec, statistics, quantized.MethodSettings(**changes)
    ).params["predictor"]
    gap = lambda a, b: max(np.abs(x - y).max() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))
    assert gap(build(spec), build(spec, **changes)) > 1e-3
    assert gap(build(other), build(other, **changes)) == 0


@pytest.mark.parametrize(
    ("method", "make"),
    [
        ("rtn", lambda **rules: quant.rtn(3, 8, "flat", released_limits=True, **rules)),
        ("omse", lambda **rules: quant.omse(3, 8, "flat", released_limits=True, **rules)),
        (
            "awq",
            lambda **_: quant.awq(
                3,
                8,
                "flat",
                ".*fc1",
                clip_queries_keys=True,
                grid_fn=quant.released_absmax_grid,
                search_grid=quant.released_range_grid,
                stale_grids=True,
                strided=True,
            ),
        ),
        ("omniquant", lambda **_: quant.omniquant(3, 8, "flat", released=True)),
    ],
)
def test_released_settings_have_the_quirks_of_the_release(world, method, make):
    _, params, statistics, _ = world
    settings = quantized.MethodSettings(released=True, omniquant_epochs=0)
    spec = parse_variant(f"predictor={method}:w3g8a8-tensor")
    variant = quantized.build_variant(CONFIG, params, spec, statistics, settings)
    transform = make(rules=quantized.site_rules(CONFIG, "predictor", "kernel"))
    own = ({"predictor": tree["predictor"]} for tree in (params, statistics))
    topology = quantized.topology(CONFIG, released_search=True).restricted("predictor")
    expected = quant.quantize(transform, *own, topology)["params"]
    jax.tree.map(np.testing.assert_array_equal, variant.params["predictor"], expected["predictor"])
    plain = quantized.build_variant(CONFIG, params, spec, statistics, quantized.MethodSettings(omniquant_epochs=0))
    kernels = [paths.named_leaves(state.params) for state in (variant, plain)]
    assert any((kernels[0][name] != kernels[1][name]).any() for name in variant.codes)
    zeros = [
        [leaf for name, leaf in paths.named_leaves(state.quant).items() if name.endswith("include_zero")]
        for state in (variant, plain)
    ]
    assert not np.any(zeros[0]) and np.all(zeros[1])
    packed = quant.pack(variant.params, variant.codes)
    jax.tree.map(np.testing.assert_array_equal, quant.expand(packed), variant.params)
    stored = quantized.summarize_sizes(params, variant)["total"]["bytes"]
    assert quantized.size_bytes(CONFIG, params, spec, settings) == stored


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(released=1), "methods.released must be true or false, not 1"),
        (dict(smoothquant_alpha=1.5), "methods.smoothquant_alpha must be a number of 0 to 1, not 1.5"),
        (dict(omniquant_alpha="0.5"), "methods.omniquant_alpha must be a number of 0 to 1, not '0.5'"),
        (dict(omniquant_epochs=2.5), "methods.omniquant_epochs must be a whole number of 0 to 10000, not 2.5"),
        (dict(omniquant_batch=0), "methods.omniquant_batch must be a whole number of 1 to 10000, not 0"),
        (dict(omniquant_clipping_rate=-1), "methods.omniquant_clipping_rate must be a number of 0 or more, not -1"),
        (
            dict(omniquant_transform_rate=float("inf")),
            "omniquant_transform_rate must be a number of 0 or more, not inf",
        ),
        (dict(awq_scaled="("), r"methods.awq_scaled must be a regular expression, not '\('"),
    ],
)
def test_settings_of_methods_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        quantized.MethodSettings(**changes)


def test_a_scale_beside_a_kernel_counts(world):
    """As AWQ keeps it for fc2, behind a GELU, where it scales every pair."""
    _, params, statistics, _ = world
    settings = quantized.MethodSettings(awq_scaled=".*")
    for text in ("predictor=awq:w4", "awq:w3g5"):
        spec = parse_variant(text)
        variant = quantized.build_variant(CONFIG, params, spec, statistics, settings)
        assert any(codes.divisor is not None for codes in variant.codes.values())
        stored = quantized.summarize_sizes(params, variant)["total"]["bytes"]
        packed = jax.tree.leaves(quant.pack(variant.params, variant.codes))
        assert quantized.size_bytes(CONFIG, params, spec, settings) == stored == sum(leaf.nbytes for leaf in packed)


def test_what_cannot_be_built_is_named(world):
    _, params, statistics, _ = world
    static, weights = [parse_variant("w8a8-tensor")], [parse_variant("w4")]
    with pytest.raises(ValueError, match="variant 'w8a8-tensor' needs calibration statistics"):
        quantized.build_variants(CONFIG, params, static)
    with pytest.raises(ValueError, match="there are no variants"):
        quantized.build_variants(CONFIG, params, [])
    with pytest.raises(ValueError, match="lack 'predictor/layers_1/attn/to_qkv/kernel'"):
        deeper = CONFIG.replace(predictor=CONFIG.predictor.replace(depth=2))
        quantized.build_variants(deeper, params, weights)
    flat = quantized.MethodSettings(released=True)
    with pytest.raises(
        ValueError, match="weight 'encoder/blocks_0/attn/qkv/kernel': the flat layout needs a group_size"
    ):
        quantized.check_variants(CONFIG, params, [parse_variant("w4g5")], settings=flat)
    bad = jax.tree.map(lambda leaf: leaf, params)
    bad["encoder"]["blocks_1"]["mlp"]["fc2"]["bias"] = (
        bad["encoder"]["blocks_1"]["mlp"]["fc2"]["bias"].at[0].set(jnp.nan)
    )
    with pytest.raises(ValueError, match="weight 'encoder/blocks_1/mlp/fc2/bias' has 1 NaN or infinite values of 12"):
        quantized.check_variants(CONFIG, bad, weights)
    spoiled = {**statistics, "predictor": jax.tree.map(lambda leaf: leaf * jnp.nan, statistics["predictor"])}
    with pytest.raises(ValueError, match="calibration statistic 'predictor/layers_0/.*' has 1 NaN"):
        quantized.build_variants(CONFIG, params, static, spoiled)
    with pytest.raises(ValueError, match="the calibration statistics lack site 'predictor/layers_0/attn/to_qkv'"):
        quantized.build_variants(CONFIG, params, static, {"encoder": statistics["encoder"]})


def test_specs_normalize_their_bits():
    assert ModuleSpec(16, act_bits=32) == ModuleSpec()
    assert ModuleSpec(4).method == "rtn" and ModuleSpec(4, act_bits=8).act_granularity == "tensor"
