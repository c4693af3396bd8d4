"""Normalisation of actions and proprioception by the statistics of the training data."""

import dataclasses
from collections.abc import Mapping

import numpy as np

FIELDS = ("action_mean", "action_std", "proprio_mean", "proprio_std")


@dataclasses.dataclass(frozen=True, eq=False)
class Normalizer:
    """Means and standard deviations that a world model was trained with.

    Every method works on numpy and on traced arrays alike. `A` is the width of one environment action, `p` of the
    proprioception, `f` the frameskip: a model action is `f` environment actions one after another, so its width is f *
    A.

    Attributes:
      action_mean, action_std: (A,) float32, in the environment's units.
      proprio_mean, proprio_std: (p,) float32, in the environment's units.
    """

    action_mean: np.ndarray
    action_std: np.ndarray
    proprio_mean: np.ndarray
    proprio_std: np.ndarray

    def __post_init__(self):
        for name in FIELDS:
            value = np.asarray(getattr(self, name), np.float32)
            object.__setattr__(self, name, value)
            if value.ndim != 1 or not np.isfinite(value).all():
                raise ValueError(f"normalizer: {name} must be a vector of finite numbers")
            if name.endswith("std") and (value <= 0).any():
                raise ValueError(f"normalizer: {name} must be positive")
        if self.action_mean.shape != self.action_std.shape or self.proprio_mean.shape != self.proprio_std.shape:
            raise ValueError("normalizer: a mean and its standard deviation differ in width")

    @classmethod
    def fit(cls, actions: np.ndarray, proprio: np.ndarray) -> "Normalizer":
        """The official statistics: mean and unbiased standard deviation over all trajectories and steps.

        Args:
          actions: (..., A) environment actions.
          proprio: (..., p).
        """
        columns = [np.asarray(x, np.float64).reshape(-1, np.shape(x)[-1]) for x in (actions, proprio)]
        (action_mean, action_std), (proprio_mean, proprio_std) = [(x.mean(0), x.std(0, ddof=1)) for x in columns]
        return cls(action_mean, action_std, proprio_mean, proprio_std)

    def normalize_action(self, action):
        """Environment actions (..., A) in units of the training data's deviation."""
        return (action - self.action_mean) / self.action_std

    def denormalize_action(self, action):
        """The inverse of `normalize_action`."""
        return action * self.action_std + self.action_mean

    def normalize_proprio(self, proprio):
        """Proprioception (..., p) in units of the training data's deviation."""
        return (proprio - self.proprio_mean) / self.proprio_std

    def to_model_actions(self, actions, frameskip: int):
        """Environment actions (..., T * f, A) -> normalised model actions (..., T, f * A)."""
        *batch, steps, width = actions.shape
        if steps % frameskip:
            raise ValueError(
                f"{steps} environment actions are no whole number of model actions of frameskip {frameskip}"
            )
        return self.normalize_action(actions).reshape(*batch, steps // frameskip, frameskip * width)

    def to_dict(self) -> dict[str, list[float]]:
        """The statistics as JSON lists; float32 values survive the round trip exactly."""
        return {name: [float(x) for x in getattr(self, name)] for name in FIELDS}

    @classmethod
    def from_dict(cls, values: Mapping[str, list[float]]) -> "Normalizer":
        """The inverse of `to_dict`.

        Raises:
          ValueError: a field is missing, unknown or no vector of finite numbers.
        """
        if not isinstance(values, Mapping) or set(values) != set(FIELDS):
            raise ValueError(f"normalizer: expected exactly the fields {', '.join(FIELDS)}")
        try:
            return cls(**{name: np.asarray(values[name], np.float32) for name in FIELDS})
        except TypeError as error:
            raise ValueError(f"normalizer: a field is no list of numbers ({error})") from None
