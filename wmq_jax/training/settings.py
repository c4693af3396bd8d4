"""Settings of a training run: a resolved config, checked before anything is generated or compiled."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from wmq_jax.envs import Wall, make_env
from wmq_jax.envs.manifest import episode_seeds
from wmq_jax.io import check_name
from wmq_jax.models import WorldModelConfig
from wmq_jax.planning import CEMConfig, MPCConfig
from wmq_jax.planning.limits import check_range
from wmq_jax.training.frames import count_frames
from wmq_jax.training.generate import WalkConfig
from wmq_jax.training.schedule import SCHEDULES

PREDICTOR_OPTIMIZERS = ("adamw", "muon")
# No stage needs more of anything; what is larger is a slip of the finger that would fill the memory.
MOST = 10_000_000
# Whole numbers that may be 0; episodes and their seeds are checked together.
_FROM_ZERO = ("warmup", "episodes", "pictures")


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The trajectories: `train` and `validation` of them, moving as `walk` says."""

    train: int
    validation: int
    walk: WalkConfig


@dataclasses.dataclass(frozen=True)
class EncoderSettings:
    """Pretraining of the encoder.

    Attributes:
      steps: optimizer steps.
      chunk: steps per compiled call, between two progress lines; divides `steps`.
      batch: images per step, half as many pairs of successive frames; even.
      slowness: weight of the slowness of the features beside the views' losses.
      learning_rate: peak of Muon's warm-up and cosine decay.
      warmup: steps of the warm-up.
      blurs: standard deviations of the views, in pixels of the observation.
      grid: side of a view, in samples; a multiple of the encoder's grid.
    """

    steps: int
    chunk: int
    batch: int
    slowness: float
    learning_rate: float
    warmup: int
    blurs: tuple[float, ...]
    grid: int


@dataclasses.dataclass(frozen=True)
class PredictorSettings:
    """Training of the predictor and the embeddings on frozen latents.

    Attributes:
      rounds: compiled calls; each takes the next shard of the training trajectories, encodes it and passes over its
        clips.
      shard: trajectories of a round; one that is taken from several offsets counts as several.
      passes: passes over a round's clips, in a new random order each.
      batch: clips per step.
      offsets: steps of a trajectory from which every frameskip-th moment is taken; 1: from the first alone; the
        frameskip: clips start at every step, as officially.
      optimizer: "adamw", which is official, or "muon".
      learning_rate: the largest of the schedule; officially 5e-4.
      embeddings_learning_rate: of the proprio and action embeddings, which officially have one of their own (5e-4
        too); 0: `learning_rate`. AdamW's alone.
      weight_decay: decoupled.
      warmup: steps of the warm-up.
      schedule: after the warm-up; "cosine", or "constant", which is official.
    """

    rounds: int
    shard: int
    passes: int
    batch: int
    offsets: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 5e-4
    embeddings_learning_rate: float = 0.0
    weight_decay: float = 0.01
    warmup: int = 0
    schedule: str = "cosine"

    def steps_of_pass(self, starts: int) -> int:
        """Optimizer steps of a pass over a shard whose trajectories have clips at ``starts`` places."""
        return self.shard * starts // self.batch

    def steps(self, starts: int) -> int:
        """Optimizer steps of the whole stage."""
        return self.rounds * self.passes * self.steps_of_pass(starts)


@dataclasses.dataclass(frozen=True)
class DecoderSettings:
    """Training of the decoder on frozen latents with Adam, officially at 3e-4.

    Fields as in `EncoderSettings` and, of the schedule, `PredictorSettings`.
    """

    steps: int
    chunk: int
    batch: int
    learning_rate: float = 3e-4
    warmup: int = 0
    schedule: str = "cosine"


@dataclasses.dataclass(frozen=True)
class ValidationSettings:
    """What is looked at in the end.

    Attributes:
      rollouts: validation trajectories imagined open-loop over their whole length.
      pictures: how many of them are drawn.
      episodes: development episodes planned with the model; 0 plans none.
      base_seed: of the development manifest.
      horizon, iterations: of MPC, in model actions and plans.
      planner: CEM's settings.
    """

    rollouts: int
    pictures: int
    episodes: int
    base_seed: int
    horizon: int
    iterations: int
    planner: CEMConfig

    @property
    def mpc(self) -> MPCConfig:
        """How development episodes are planned."""
        return MPCConfig(planner=self.planner, horizon=self.horizon, iterations=self.iterations)


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """A checked configuration; `configs/train_wall.py` documents the fields. A given encoder has no settings."""

    name: str
    seed: int
    env: Wall
    model: WorldModelConfig
    data: DataSettings
    encoder: EncoderSettings | None
    predictor: PredictorSettings
    decoder: DecoderSettings
    validation: ValidationSettings


def check_settings(config: Mapping[str, Any]) -> TrainSettings:
    """Turns a resolved config into settings.

    Raises:
      ValueError: a value is not accepted, two do not fit together, or a group has other fields; the message names them.
    """
    env = make_env(**config["env"])
    if not isinstance(env, Wall):
        raise ValueError("training generates trajectories of the wall environment only")
    data = dict(config["data"])
    walk = _group(WalkConfig, "data.walk", data.pop("walk"))
    validation = dict(config["validation"])
    planner = _group(CEMConfig, "validation.planner", validation.pop("planner"))
    encoder = _group(EncoderSettings, "encoder", config["encoder"])
    settings = TrainSettings(
        name=check_name(config["name"]),
        seed=config["seed"],
        env=env,
        model=WorldModelConfig.from_dict(config["model"]),
        data=_group(DataSettings, "data", {**data, "walk": walk}),
        encoder=None if config["init"]["checkpoint"] else encoder,
        predictor=_group(PredictorSettings, "predictor", config["predictor"]),
        decoder=_group(DecoderSettings, "decoder", config["decoder"]),
        validation=_group(ValidationSettings, "validation", {**validation, "planner": planner}),
    )
    _check_numbers(settings)
    _check_fit(settings)
    _check_validation(settings.validation)
    if settings.encoder is not None:
        _check_encoder(settings.encoder, settings.model)
    return settings


def _group(kind: type, where: str, fields: Mapping[str, Any]) -> Any:
    """A dataclass of a group of the config, whose lists become tuples of numbers.

    Raises:
      ValueError: a field is unknown or missing, or a list holds something else.
    """
    known = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(kind)}
    for name in fields:
        if name not in known:
            raise ValueError(f"{where} has no field {name!r}; its fields are {', '.join(known)}")
    for name, needed in known.items():
        if needed and name not in fields:
            raise ValueError(f"{where} lacks the field {name!r}")
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, (list, tuple))}
    for name, values in lists.items():
        if not all(isinstance(value, (int, float)) for value in values):
            raise ValueError(f"{where}.{name} must be numbers, not {values}")
    return kind(**{**fields, **lists})


def _check_numbers(settings: TrainSettings) -> None:
    if not 0 <= settings.seed < 2**32:
        raise ValueError(f"seed must be 0..{2**32 - 1}, not {settings.seed}")
    for group in ("data", "encoder", "predictor", "decoder", "validation"):
        fields = getattr(settings, group)
        for field, value in vars(fields).items() if fields is not None else ():
            if isinstance(value, int) and field != "base_seed":
                check_range(f"{group}.{field}", value, 0 if field in _FROM_ZERO else 1, MOST)
            if isinstance(value, float) and not 0 <= value < math.inf:
                raise ValueError(f"{group}.{field} must be a number of 0 or more, not {value}")
    if settings.predictor.optimizer not in PREDICTOR_OPTIMIZERS:
        known = " or ".join(PREDICTOR_OPTIMIZERS)
        raise ValueError(f"predictor.optimizer must be {known}, not {settings.predictor.optimizer!r}")
    if settings.predictor.optimizer != "adamw" and settings.predictor.embeddings_learning_rate:
        raise ValueError("predictor.embeddings_learning_rate is of adamw: muon has one rate, predictor.learning_rate")
    for group in ("predictor", "decoder"):
        schedule = getattr(settings, group).schedule
        if schedule not in SCHEDULES:
            raise ValueError(f"{group}.schedule must be {' or '.join(SCHEDULES)}, not {schedule!r}")


def _check_fit(settings: TrainSettings) -> None:
    model, data, predictor = settings.model, settings.data, settings.predictor
    spec = settings.env.spec
    if model.image_size != spec.image_size:
        raise ValueError(f"model.image_size {model.image_size} is not the environment's image_size {spec.image_size}")
    if (model.proprio_dim, model.action_dim) != (spec.proprio_dim, spec.action_dim * model.frameskip):
        raise ValueError(
            f"model.proprio_dim and model.action_dim must be {spec.proprio_dim} and "
            f"{spec.action_dim * model.frameskip} (frameskip environment actions of {spec.action_dim}), "
            f"not {model.proprio_dim} and {model.action_dim}"
        )
    if model.decoder is None or model.decoder.quantize:
        raise ValueError("model.decoder must be there, with quantize off: training shows what it imagines")
    if predictor.offsets > model.frameskip:
        raise ValueError(f"predictor.offsets must be 1 to model.frameskip, {model.frameskip}, not {predictor.offsets}")
    frames = count_frames(data.walk.steps, model.frameskip, predictor.offsets)
    if frames < model.num_hist + 1:
        raise ValueError(f"data.walk.steps {data.walk.steps} is too short for clips of {model.num_hist + 1} frames")
    if predictor.shard > data.train * predictor.offsets:
        times = f" x predictor.offsets {predictor.offsets}" if predictor.offsets > 1 else ""
        raise ValueError(f"predictor.shard {predictor.shard} is more than data.train {data.train}{times}")
    starts = frames - model.num_hist
    clips = predictor.shard * starts
    if predictor.batch > clips:
        raise ValueError(f"predictor.batch {predictor.batch} is more than the {clips} clips of a round")
    if predictor.warmup >= predictor.steps(starts):
        raise ValueError(
            f"predictor.warmup {predictor.warmup} must be less than the {predictor.steps(starts)} steps of its rounds"
        )
    if settings.validation.rollouts > data.validation:
        raise ValueError(f"validation.rollouts is more than data.validation {data.validation}")
    for group in ("encoder", "decoder"):
        stage = getattr(settings, group)
        if stage is None:
            continue
        if stage.steps % stage.chunk:
            raise ValueError(f"{group}.chunk {stage.chunk} must divide {group}.steps {stage.steps}")
        if stage.warmup >= stage.steps:
            raise ValueError(f"{group}.warmup {stage.warmup} must be less than {group}.steps {stage.steps}")


def _check_validation(validation: ValidationSettings) -> None:
    """What is planned after all the training."""
    try:
        _ = validation.mpc
        if validation.episodes:
            episode_seeds("development", validation.episodes, validation.base_seed)
    except ValueError as error:
        raise ValueError(f"validation: {error}") from None


def _check_encoder(encoder: EncoderSettings, model: WorldModelConfig) -> None:
    if encoder.batch % 2:
        raise ValueError(f"encoder.batch must be even, since frames come in pairs, not {encoder.batch}")
    if not encoder.blurs or not all(0 < blur < math.inf for blur in encoder.blurs):
        raise ValueError(f"encoder.blurs must be positive numbers, not {encoder.blurs}")
    side = model.encoder_image_size // model.encoder.patch
    if encoder.grid % side:
        raise ValueError(f"encoder.grid {encoder.grid} must be a multiple of the encoder's {side} patches a side")
