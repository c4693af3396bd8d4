"""`hydra.yaml` of an official run: read as data alone, and turned into a model's configuration and back."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from wmq_jax.data import Portion
from wmq_jax.io.wording import plain, quoted
from wmq_jax.models import DecoderConfig, PredictorConfig, ViTConfig, WorldModelConfig
from wmq_jax.models.config import FEATURES

LARGEST = 1 << 16  # characters; a run's settings have 2000, and some YAML takes 30 s for each million
_LARGEST_SIZE = 8192
_MOST_TRAJECTORIES = 1 << 31


class _PlainLoader(yaml.SafeLoader):
    """YAML without tags that make objects, without aliases, which can make a small file enormous, and without numbers
    in base 60 (1:30), which are left as text: reading one of n parts takes n^2 steps.
    """

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases")
        return super().compose_node(parent, index)


for _tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
    _construct = yaml.SafeLoader.yaml_constructors[_tag]
    _PlainLoader.add_constructor(
        _tag, lambda loader, node, read=_construct: node.value if ":" in node.value else read(loader, node)
    )


def read_hydra(text: str, where: str) -> dict[str, Any]:
    """The settings of a run.

    Args:
      text: contents of `hydra.yaml`.
      where: what messages call it.

    Raises:
      ValueError: it is no plain YAML mapping.
    """
    if len(text) > LARGEST:
        raise ValueError(f"{where} has more than {LARGEST} characters; the settings of a run have fewer.")
    try:
        settings = yaml.load(text, _PlainLoader)
    # Constructors of explicit tags raise what they like (!!bool maybe: KeyError, !!int "": IndexError).
    except (yaml.YAMLError, ValueError, RecursionError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(f"{where} is no plain YAML: {plain(' '.join(str(error)[:1000].split()), 200)}.") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{where} is no YAML mapping of settings.")
    return settings


def _setting(
    settings: Mapping[str, Any],
    path: str,
    kind: type | tuple[type, ...],
    default: Any = None,
    largest: int = _LARGEST_SIZE,
) -> Any:
    """The setting at a dotted path; without a default it must be there. `largest` bounds a number's absolute value."""
    value: Any = settings
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None:
        value = default
    # A truth value is a whole number to Python.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        found = "is missing" if value is None else f"is {quoted(value)}"
        raise ValueError(f"hydra.yaml: {path} must be a {names}, but {found}.")
    # Sizes become loops and arrays before any weight is compared with them.
    if isinstance(value, (int, float)) and not abs(value) <= largest:
        raise ValueError(f"hydra.yaml: {path} is {quoted(value)}; numbers up to {largest} are accepted.")
    return value


def _target(settings: Mapping[str, Any], part: str, accepted: tuple[str, ...]) -> str:
    """The class name that a part is made from."""
    name = _setting(settings, f"{part}._target_", str).rsplit(".", 1)[-1]
    if name not in accepted:
        raise ValueError(f"hydra.yaml: {part}._target_ names {plain(name)}; accepted: {', '.join(accepted)}.")
    return name


def encoder_feature(settings: Mapping[str, Any]) -> str:
    """Which of the backbone's outputs the run uses.

    Raises:
      ValueError: its encoder is not DINOv2, or has no such output.
    """
    _target(settings, "encoder", ("DinoV2Encoder",))
    feature = _setting(settings, "encoder.feature_key", str)
    if feature not in FEATURES:
        raise ValueError(f"hydra.yaml: encoder.feature_key is {quoted(feature)}; accepted: {', '.join(FEATURES)}.")
    return feature


def backbone_file(settings: Mapping[str, Any]) -> str:
    """Name of the file that the backbone is published in."""
    name = _setting(settings, "encoder.name", str)
    if not re.fullmatch(r"\w+", name):
        raise ValueError(f"hydra.yaml: encoder.name must be letters, digits and underscores, not {quoted(name)}.")
    # Models with registers, dinov2_vits14_reg, are published as dinov2_vits14_reg4_pretrain.pth.
    return f"{re.sub('_reg$', '_reg4', name)}_pretrain.pth"


def model_config(
    settings: Mapping[str, Any], encoder: ViTConfig, proprio_dim: int, action_dim: int
) -> WorldModelConfig:
    """The configuration that a run's settings describe.

    Args:
      settings: from `read_hydra`.
      encoder: its backbone, which the settings name without its sizes.
      proprio_dim: entries of a proprioception vector, which the settings leave to the data set.
      action_dim: entries of a model action, likewise.

    Raises:
      ValueError: a setting is missing, of another type or not supported; the message names it.
    """
    name = _setting(settings, "encoder.name", str)
    if name.endswith("_reg") != bool(encoder.registers):
        raise ValueError(
            f"hydra.yaml names the backbone {plain(name)}, but the one given has {encoder.registers} register tokens."
        )
    if not _setting(settings, "has_predictor", bool, True):
        raise ValueError("hydra.yaml: the run has no predictor (has_predictor is false), so it cannot plan.")
    if _setting(settings, "num_pred", int, 1) != 1:
        raise ValueError(f"hydra.yaml: num_pred is {settings['num_pred']}, but only 1 is supported.")
    _target(settings, "predictor", ("ViTPredictor",))
    whole = lambda path, default=None: _setting(settings, path, int, default)
    return WorldModelConfig(
        encoder=encoder,
        predictor=PredictorConfig(
            depth=whole("predictor.depth"),
            heads=whole("predictor.heads"),
            dim_head=whole("predictor.dim_head", PredictorConfig.dim_head),
            mlp_dim=whole("predictor.mlp_dim"),
            dropout=float(_setting(settings, "predictor.dropout", (int, float), 0.0)),
            emb_dropout=float(_setting(settings, "predictor.emb_dropout", (int, float), 0.0)),
        ),
        decoder=_decoder(settings) if _setting(settings, "has_decoder", bool, False) else None,
        proprio_dim=proprio_dim,
        action_dim=action_dim,
        image_size=whole("img_size"),
        num_hist=whole("num_hist"),
        concat_dim=whole("concat_dim"),
        proprio_emb_dim=whole("proprio_emb_dim"),
        num_proprio_repeat=whole("num_proprio_repeat", 1),
        action_emb_dim=whole("action_emb_dim"),
        num_action_repeat=whole("num_action_repeat", 1),
        frameskip=whole("frameskip"),
    )


def _decoder(settings: Mapping[str, Any]) -> DecoderConfig:
    sizes = lambda *names: {name: _setting(settings, f"decoder.{name}", int) for name in names}
    if _target(settings, "decoder", ("VQVAE", "TransposedConvDecoder")) == "VQVAE":
        return DecoderConfig(
            quantize=_setting(settings, "decoder.quantize", bool),
            **sizes("channel", "n_embed", "n_res_block", "n_res_channel"),
        )
    shape = _setting(settings, "decoder.observation_shape", list)
    return DecoderConfig(kind="transposed_conv", output_size=shape[-1] if shape else 0, **sizes("depth"))


def environment(settings: Mapping[str, Any]) -> str:
    """Name of the environment that a run was trained on."""
    return _setting(settings, "env.name", str)


def normalizes_actions(settings: Mapping[str, Any]) -> bool:
    """Whether the run normalises actions and proprioception."""
    return _setting(settings, "normalize_action", bool, True)


def portion(settings: Mapping[str, Any]) -> Portion:
    """What the run took of its data set; where the settings do not say, what the published runs took.

    Raises:
      ValueError: it is no such number.
    """
    default = Portion()
    # Officially 0 means all, too.
    count = _setting(settings, "env.dataset.n_rollout", int, 0, largest=_MOST_TRAJECTORIES)
    ratio = _setting(settings, "env.dataset.split_ratio", (int, float), default.split_ratio)
    try:
        return Portion.from_dict({"n_rollout": count or None, "split_ratio": ratio})
    except ValueError as error:
        raise ValueError(f"hydra.yaml: env.dataset: {error}.") from None


def hydra_settings(config: WorldModelConfig, backbone: str, env: str, taken: Portion = Portion()) -> dict[str, Any]:
    """The inverse of `model_config`: settings that describe a model.

    Args:
      config: the model.
      backbone: the backbone's name, such as 'dinov2_vits14'.
      env: name of the environment.
      taken: what was taken of the data set.
    """
    predictor, decoder = config.predictor, config.decoder
    settings: dict[str, Any] = {
        "img_size": config.image_size,
        "frameskip": config.frameskip,
        "concat_dim": config.concat_dim,
        "normalize_action": True,
        "action_emb_dim": config.action_emb_dim,
        "num_action_repeat": config.num_action_repeat,
        "proprio_emb_dim": config.proprio_emb_dim,
        "num_proprio_repeat": config.num_proprio_repeat,
        "num_hist": config.num_hist,
        "num_pred": 1,
        "has_predictor": True,
        "has_decoder": decoder is not None,
        "env": {"name": env, "dataset": taken._asdict()},
        "encoder": {
            "_target_": "models.dino.DinoV2Encoder",
            "name": backbone,
            "feature_key": config.encoder.feature,
        },
        "predictor": {"_target_": "models.vit.ViTPredictor", "pool": "mean"}
        | {
            name: getattr(predictor, name)
            for name in ("depth", "heads", "dim_head", "mlp_dim", "dropout", "emb_dropout")
        },
    }
    if decoder is not None and decoder.kind == "vqvae":
        names = ("channel", "n_embed", "n_res_block", "n_res_channel", "quantize")
        settings["decoder"] = {"_target_": "models.vqvae.VQVAE"} | {name: getattr(decoder, name) for name in names}
    elif decoder is not None:
        side = decoder.output_size
        target = "models.decoder.transposed_conv.TransposedConvDecoder"
        settings["decoder"] = {"_target_": target, "observation_shape": [3, side, side], "depth": decoder.depth}
    return settings


def write_hydra(settings: Mapping[str, Any]) -> str:
    """Settings as YAML text."""
    return yaml.safe_dump(dict(settings), sort_keys=False)
