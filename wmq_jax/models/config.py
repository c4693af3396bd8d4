"""Sizes of a world model and its parts: frozen dataclasses that round-trip through JSON.

The named configurations are at the end: `official_config` has the sizes of the published DINO-WM checkpoints,
`bundled_config` those of the small Wall model that ships with the package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

FEATURES = ("x_norm_patchtokens", "x_norm_clstoken")
_DECODERS = ("vqvae", "transposed_conv")
# Far above any published size; without a bound, a slip of the finger would fill the memory.
_MOST = 65536


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class _JsonConfig:
    """`to_dict` and `from_dict` for a frozen dataclass whose fields are plain values."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as nested plain dicts, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Builds the config from `to_dict`'s output; fields left out take their defaults.

        Raises:
          ValueError: a field is unknown, a required one is missing, or a value is out of range.
        """
        known = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - set(known))
        _require(not unknown, f"{cls.__name__} has no field {unknown}; its fields are {sorted(known)}.")
        required = {
            name
            for name, f in known.items()
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        missing = sorted(required - set(fields))
        _require(not missing, f"{cls.__name__} needs the field {missing}.")
        return cls(**fields)

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def _require_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            _require(
                isinstance(value, int) and 1 <= value <= _MOST,
                f"{type(self).__name__}.{name} must be a whole number in 1..{_MOST}, got {value!r}.",
            )


@dataclasses.dataclass(frozen=True)
class ViTConfig(_JsonConfig):
    """A DINOv2 vision transformer.

    Attributes:
      width: channels of a token.
      depth: number of blocks.
      heads: attention heads; `width` must be a multiple of it.
      mlp_dim: hidden channels of a block's MLP.
      patch: side of a patch, in pixels.
      table_grid: side of the stored position table, in patches (37 for the published 518-pixel backbones).
      registers: number of register tokens (4 in the published `_reg` variants).
      interpolate_offset: added to the target side when the position table is resampled (0.1 in the published
        backbones, 0.0 in the `_reg` variants).
      interpolate_antialias: low-pass filter when the position table shrinks (true in the `_reg` variants).
      feature: 'x_norm_patchtokens' (one latent per patch) or 'x_norm_clstoken' (one latent per image).
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_dim: int = 1536
    patch: int = 14
    table_grid: int = 37
    registers: int = 0
    interpolate_offset: float = 0.1
    interpolate_antialias: bool = False
    feature: str = "x_norm_patchtokens"

    def __post_init__(self):
        self._require_positive("width", "depth", "heads", "mlp_dim", "patch", "table_grid")
        _require(
            self.width % self.heads == 0, f"ViTConfig.width ({self.width}) must be a multiple of heads ({self.heads})."
        )
        _require(0 <= self.registers <= _MOST, f"ViTConfig.registers must be in 0..{_MOST}, got {self.registers}.")
        # Half a patch and more would be another grid.
        _require(
            0.0 <= self.interpolate_offset < 1.0,
            f"ViTConfig.interpolate_offset must lie in [0, 1), got {self.interpolate_offset!r}.",
        )
        _require(self.feature in FEATURES, f"ViTConfig.feature must be one of {FEATURES}, got {self.feature!r}.")


@dataclasses.dataclass(frozen=True)
class PredictorConfig(_JsonConfig):
    """The frame-causal transformer that predicts the next frame's latents.

    Attributes:
      depth: number of layers.
      heads: attention heads.
      dim_head: channels of a head (heads * dim_head need not be the predictor's width).
      mlp_dim: hidden channels of a layer's MLP.
      dropout: rate inside attention and MLP, used only in calls with `deterministic=False`.
      emb_dropout: rate after the position embedding, likewise.
      residual: predict the change from the input frame instead of the next frame itself. Not in DINO-WM: off for
        official weights.
      qkv_bias: give `to_qkv` a bias. Not in DINO-WM; for methods that fold a shift into the weights.
    """

    depth: int = 6
    heads: int = 16
    dim_head: int = 64
    mlp_dim: int = 2048
    dropout: float = 0.1
    emb_dropout: float = 0.0
    residual: bool = False
    qkv_bias: bool = False

    def __post_init__(self):
        self._require_positive("depth", "heads", "dim_head", "mlp_dim")
        for name in ("dropout", "emb_dropout"):
            rate = getattr(self, name)
            _require(0.0 <= rate < 1.0, f"PredictorConfig.{name} must lie in [0, 1), got {rate!r}.")


@dataclasses.dataclass(frozen=True)
class DecoderConfig(_JsonConfig):
    """A decoder from visual latents to images.

    Attributes:
      kind: 'vqvae' (a square grid of latents, up-sampled 16 times) or 'transposed_conv' (one latent per image).
      channel: hidden channels of the VQ-VAE decoder.
      n_embed: codes of its codebook (used when `quantize`).
      n_res_block: residual blocks of each up-sampling stack.
      n_res_channel: hidden channels of a residual block.
      quantize: replace each latent by its nearest code before decoding.
      depth: channel unit of the transposed-convolution decoder.
      output_size: side of its images, in pixels.
    """

    kind: str = "vqvae"
    channel: int = 384
    n_embed: int = 2048
    n_res_block: int = 4
    n_res_channel: int = 128
    quantize: bool = False
    depth: int = 32
    output_size: int = 224

    def __post_init__(self):
        _require(self.kind in _DECODERS, f"DecoderConfig.kind must be one of {_DECODERS}, got {self.kind!r}.")
        self._require_positive("channel", "n_embed", "n_res_channel", "depth", "output_size")
        _require(
            0 <= self.n_res_block <= _MOST, f"DecoderConfig.n_res_block must be in 0..{_MOST}, got {self.n_res_block}."
        )


@dataclasses.dataclass(frozen=True)
class WorldModelConfig(_JsonConfig):
    """A world model: encoder, predictor, optional decoder, and how a frame's parts become tokens.

    Attributes:
      encoder: the visual encoder.
      predictor: the predictor.
      decoder: the decoder, or None for a model that only plans.
      image_size: side of the observations, in pixels.
      num_hist: most frames the predictor looks at.
      concat_dim: 1 appends proprio and action embeddings to the channels of every patch; 0 appends them to each
        frame as two extra tokens, and then both embedding widths equal `encoder.width`.
      proprio_dim: entries of a proprioception vector.
      proprio_emb_dim: channels of its embedding.
      num_proprio_repeat: copies of it that are appended (concat_dim 1).
      action_dim: entries of a model action, i.e. environment action entries * frameskip.
      action_emb_dim: channels of its embedding.
      num_action_repeat: copies of it that are appended (concat_dim 1).
      frameskip: environment steps between two frames.
      standardize_latents: shift and scale the encoder's features by constants kept with the parameters. Not in
        DINO-WM: off for official weights.
    """

    encoder: ViTConfig
    predictor: PredictorConfig
    decoder: DecoderConfig | None
    proprio_dim: int
    action_dim: int
    image_size: int = 224
    num_hist: int = 3
    concat_dim: int = 1
    proprio_emb_dim: int = 10
    num_proprio_repeat: int = 1
    action_emb_dim: int = 10
    num_action_repeat: int = 1
    frameskip: int = 5
    standardize_latents: bool = False

    def __post_init__(self):
        self._require_positive(
            "proprio_dim",
            "action_dim",
            "image_size",
            "num_hist",
            "proprio_emb_dim",
            "num_proprio_repeat",
            "action_emb_dim",
            "num_action_repeat",
            "frameskip",
        )
        _require(self.concat_dim in (0, 1), f"WorldModelConfig.concat_dim must be 0 or 1, got {self.concat_dim!r}.")
        _require(self.image_size >= 16, f"WorldModelConfig.image_size must be at least 16, got {self.image_size}.")
        _require(
            self.encoder_image_size % self.encoder.patch == 0,
            f"the encoder's image side ({self.encoder_image_size}) must be a multiple of its patch "
            f"({self.encoder.patch}).",
        )
        if self.concat_dim == 0:
            widths = (self.proprio_emb_dim, self.action_emb_dim)
            _require(
                widths == (self.encoder.width,) * 2,
                f"with concat_dim 0, proprio_emb_dim and action_emb_dim must equal the encoder's width "
                f"({self.encoder.width}), got {widths}.",
            )
            repeats = (self.num_proprio_repeat, self.num_action_repeat)
            _require(repeats == (1, 1), f"with concat_dim 0, both repeats must be 1, got {repeats}.")
        if self.decoder is not None and self.decoder.kind == "transposed_conv":
            _require(
                self.num_patches == 1,
                f"the transposed-convolution decoder takes one latent per frame (feature 'x_norm_clstoken'), "
                f"got {self.num_patches}.",
            )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """See `_JsonConfig.from_dict`; nested configs are dicts (or None for no decoder)."""
        parts = {"encoder": ViTConfig, "predictor": PredictorConfig, "decoder": DecoderConfig}
        built = {name: part.from_dict(fields[name]) for name, part in parts.items() if fields.get(name) is not None}
        return super().from_dict({**fields, **built})

    @property
    def encoder_image_size(self) -> int:
        """Side of the image given to the encoder, in pixels: 14 for every 16 of the observation."""
        return self.image_size // 16 * 14

    @property
    def num_patches(self) -> int:
        """Visual latents per frame."""
        if self.encoder.feature == "x_norm_clstoken":
            return 1
        return (self.encoder_image_size // self.encoder.patch) ** 2

    @property
    def proprio_channels(self) -> int:
        """Channels that proprioception adds to every patch (concat_dim 1)."""
        return self.proprio_emb_dim * self.num_proprio_repeat

    @property
    def action_channels(self) -> int:
        """Channels that the action adds to every patch (concat_dim 1)."""
        return self.action_emb_dim * self.num_action_repeat

    @property
    def predictor_dim(self) -> int:
        """Channels of a predictor token."""
        if self.concat_dim == 0:
            return self.encoder.width
        return self.encoder.width + self.proprio_channels + self.action_channels

    @property
    def tokens_per_frame(self) -> int:
        """Predictor tokens per frame: the patches, and with concat_dim 0 one for proprio and one for the action."""
        return self.num_patches + (2 if self.concat_dim == 0 else 0)


# Environment action and proprioception entries, and history, of the published checkpoints.
_OFFICIAL = {
    "wall": dict(env_action_dim=2, proprio_dim=2, num_hist=1),
    "pusht": dict(env_action_dim=2, proprio_dim=4, num_hist=3),
    "point_maze": dict(env_action_dim=2, proprio_dim=4, num_hist=3),
}


def official_config(env: str = "wall") -> WorldModelConfig:
    """The sizes of the published DINO-WM checkpoint for `env` ('wall', 'pusht' or 'point_maze')."""
    _require(env in _OFFICIAL, f"there is no official configuration for {env!r}; there is one for {sorted(_OFFICIAL)}.")
    sizes = _OFFICIAL[env]
    frameskip = 5
    return WorldModelConfig(
        encoder=ViTConfig(),
        predictor=PredictorConfig(),
        decoder=DecoderConfig(),
        proprio_dim=sizes["proprio_dim"],
        action_dim=sizes["env_action_dim"] * frameskip,
        num_hist=sizes["num_hist"],
        frameskip=frameskip,
    )


def bundled_config() -> WorldModelConfig:
    """The small Wall model of the package: 65-pixel images, 16 tokens, 0.46 M parameters without the decoder."""
    return WorldModelConfig(
        encoder=ViTConfig(width=64, depth=3, heads=2, mlp_dim=256, table_grid=4),
        predictor=PredictorConfig(depth=3, heads=3, dim_head=32, mlp_dim=256, dropout=0.0),
        decoder=DecoderConfig(channel=64, n_res_block=2, n_res_channel=32),
        proprio_dim=2,
        action_dim=10,
        image_size=65,
        num_hist=1,
        proprio_emb_dim=16,
        action_emb_dim=16,
    )
