"""A scikit-learn classifier that learns in context, without training.

::

  from metajax.sklearn import InContextClassifier

  classifier = InContextClassifier().fit(x, y)
  probabilities = classifier.predict_proba(new_x)
"""

import functools
import json
import os
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metajax import saved
from metajax.loaded import Loaded
from metajax.numerics import check_counts
from metajax.recipes import Recipe, build
from metajax.types import Batch

try:
  from sklearn.base import BaseEstimator, ClassifierMixin
  from sklearn.utils import check_random_state
  from sklearn.utils.multiclass import check_classification_targets
  from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
  raise ImportError(
    "metajax.sklearn needs scikit-learn 1.6 or later: pip install "
    "'scikit-learn>=1.6'."
  ) from error

WEIGHTS = Path(__file__).parent / "tabular" / "weights"
# Rows and features are padded to one of few sizes, so that few programs are
# compiled.
LEAST_ROWS, LEAST_FEATURES = 32, 4
# Numbers of the largest array of attention scores.
BUDGET = 2**25


class InContextClassifier(ClassifierMixin, BaseEstimator):
  """Classifies the rows of small tables by a tabular prior-fitted network.

  `fit` only stores the table. `predict_proba` lets the network read it, and
  averages the probabilities of several readings::

    p(y | x) = 1/n_estimators sum_e softmax(logits of reading e)

  Each reading has another permutation of the classes, and other names of the
  columns (`metajax.tabular.Columns`). If there are more
  features than `max_features`, or more rows than `max_rows`, it has a random
  part of them. More than 10 classes are told apart one against the rest.

  Values may be missing (NaN). Categories must be numbers; the order of the
  numbers need not have a meaning (`OrdinalEncoder`).

  Args:
    weights: the folder of a run of `experiments.tabular`. None: the weights
      that come with metajax (`--preset=core`).
    n_estimators: number of readings.
    max_features: the most features of a reading. None: as many as
      `default_features` says of the weights.
    max_rows: the most training rows of a reading. Time and memory grow with its
      square.
    random_state: seed of permutations and parts: an integer, a numpy
      `RandomState`, or None.

  Attributes:
    classes_: `[classes]`, the labels.
    n_features_in_: number of features.
    feature_names_in_: their names, if the training table has names.
    recipe_: the description of the network.
    weights_: its arrays.
  """

  def __init__(
    self,
    weights: str | os.PathLike | None = None,
    *,
    n_estimators: int = 8,
    max_features: int | None = None,
    max_rows: int = 1000,
    random_state: Any = 0,
  ):
    self.weights = weights
    self.n_estimators = n_estimators
    self.max_features = max_features
    self.max_rows = max_rows
    self.random_state = random_state

  def __sklearn_tags__(self) -> Any:
    """Says that values may be missing."""
    tags = super().__sklearn_tags__()
    tags.input_tags.allow_nan = True
    return tags

  def fit(self, X: Any, y: Any) -> "InContextClassifier":  # noqa: N803
    """Stores a training table.

    Args:
      X: `[rows, features]` numbers; NaN is missing.
      y: `[rows]` labels.

    Raises:
      ValueError: for an impossible argument, columns that are not numbers, more
        classes than `max_rows`, or a folder without weights.
    """
    for name in ("n_estimators", "max_features", "max_rows"):
      value = getattr(self, name)
      if value is not None or name != "max_features":
        check_counts(**{name: value})
    _check_numbers(X)
    X, y = validate_data(  # noqa: N806
      self, X, y, dtype=np.float64, ensure_all_finite="allow-nan"
    )
    check_classification_targets(y)
    self.classes_, labels = np.unique(y, return_inverse=True)
    if len(self.classes_) > self.max_rows:
      raise ValueError(
        f"max_rows={self.max_rows}: a reading must have a row of each of the "
        f"{len(self.classes_)} classes; give max_rows={len(self.classes_)} or "
        "more."
      )
    loaded = saved.load(WEIGHTS if self.weights is None else self.weights)
    if loaded.recipe.learner != "tabular_classifier":
      raise ValueError(
        f"weights={self.weights}: they are of {loaded.recipe.learner}, must be "
        "of a run of experiments.tabular."
      )
    self.recipe_ = loaded.recipe
    self.weights_ = jax.tree.map(np.asarray, loaded.meta_params)
    self.features_read_ = min(
      X.shape[1], self.max_features or default_features(loaded)
    )
    if X.shape[1] > self.features_read_:
      warnings.warn(
        f"{X.shape[1]} features: each of the {self.n_estimators} readings has "
        f"{self.features_read_} of them, drawn at random. Give more readings, "
        "or fewer features, or a larger max_features.",
        stacklevel=2,
      )
    if len(X) > self.max_rows:
      warnings.warn(
        f"{len(X)} rows: each of the {self.n_estimators} readings has "
        f"max_rows={self.max_rows} of them, drawn at random. Give more "
        "readings or a larger max_rows.",
        stacklevel=2,
      )
    # In float64, because float32 holds neither large nor close numbers.
    self._centre, self._scale = _measured(X)
    self._table, self._labels = self._standardized(X), labels.astype(np.int32)
    self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
    return self

  def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
    """Returns the probabilities `[rows, classes]` of a table.

    Args:
      X: `[rows, features]` numbers; NaN is missing.

    Raises:
      ValueError: if the predictions of the network are not finite.
    """
    check_is_fitted(self)
    _check_numbers(X)
    X = validate_data(  # noqa: N806
      self, X, reset=False, dtype=np.float64, ensure_all_finite="allow-nan"
    )
    asked, count = self._standardized(X), len(self.classes_)
    draw = np.random.default_rng(self._seed)
    total = np.zeros((len(X), count))
    for number in range(self.n_estimators):
      rows, columns = self._part(draw)
      table = self._table[rows][:, columns]
      labels, questions = self._labels[rows], asked[:, columns]
      if count <= self.recipe_.num_outputs:
        order = draw.permutation(count)
        total += self._read(table, order[labels], questions, count, number)[
          :, order
        ]
        continue
      for k in range(count):
        own = (labels == k).astype(np.int32)
        total[:, k] += self._read(table, own, questions, 2, number)[:, 1]
    if not np.isfinite(total).all():
      raise ValueError(
        f"weights={self.weights}: the network's predictions are not finite: "
        "give those of a training that did not diverge."
      )
    return total / total.sum(1, keepdims=True)

  def predict(self, X: Any) -> np.ndarray:  # noqa: N803
    """Returns the most probable labels `[rows]` of a table."""
    chances = self.predict_proba(X)  # Refuses an estimator without a table.
    return self.classes_[chances.argmax(1)]

  def _standardized(self, x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
      x = (x - self._centre) / self._scale
    return np.clip(x, -1e6, 1e6).astype(np.float32)

  def _part(self, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws the rows and columns of a reading."""
    rows, width = self._table.shape
    columns = draw.permutation(width)[: self.features_read_]
    if rows <= self.max_rows:
      return np.arange(rows), columns
    chosen = draw.permutation(rows)
    # One row of each class comes first, so that none is left out.
    _, first = np.unique(self._labels[chosen], return_index=True)
    chosen = np.concatenate([chosen[first], np.delete(chosen, first)])
    return chosen[: self.max_rows], columns

  def _read(
    self,
    table: np.ndarray,
    labels: np.ndarray,
    asked: np.ndarray,
    count: int,
    number: int,
  ) -> np.ndarray:
    """Returns the probabilities `[asked, count]` of one reading."""
    rows, width = (
      _padded(len(table), LEAST_ROWS),
      _padded(table.shape[1], LEAST_FEATURES),
    )
    adapt, predict = _programs(_key(self.recipe_))
    real: Any = np.arange(rows) < len(table)
    support = Batch(
      _filled(table, rows, width), np.resize(labels, rows) * real, real
    )
    key = np.asarray([self._seed, number], np.uint32)
    task_params = adapt(self.weights_, support, key)
    most = max(LEAST_ROWS, BUDGET // (4 * width * rows))
    size = min(_padded(len(asked), LEAST_ROWS), 2 ** (most.bit_length() - 1))
    parts = [
      np.asarray(
        predict(task_params, _filled(asked[i : i + size], size, width))
      )
      for i in range(0, len(asked), size)
    ]
    logits = np.concatenate(parts)[: len(asked), :count].astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    chances = np.exp(logits)
    return chances / chances.sum(1, keepdims=True)


def _check_numbers(table: Any) -> None:
  """Names the columns of a table that have texts, categories or dates."""
  if hasattr(table, "iloc"):
    columns = dict(table.items())
  elif getattr(table, "ndim", 0) == 2 and table.dtype.kind in "OUS":
    columns = dict(enumerate(np.asarray(table).T))
  else:
    return
  wrong = [name for name, column in columns.items() if not _is_number(column)]
  if wrong:
    raise ValueError(
      f"X: the columns {wrong} are not numbers. Make numbers of categories by "
      "sklearn.preprocessing.OrdinalEncoder, and of dates; leave out texts."
    )


def _is_number(column: Any) -> bool:
  kind = getattr(column.dtype, "kind", "O")
  if kind in "biufmM":  # m and M are times.
    return kind not in "mM"
  try:
    np.asarray(column, np.float64)
  except ValueError:
    return False
  except TypeError:  # scikit-learn has messages of its own.
    return True
  return True


def default_features(loaded: Loaded) -> int:
  """Returns the most features of a reading: twice as many as in training."""
  return 2 * loaded.inputs.shape[0]


def _measured(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the mean and the deviation of the observed values by column."""
  known = ~np.isnan(x)
  count = np.maximum(known.sum(0), 1)
  values = np.where(known, x, 0)
  largest = np.abs(values).max(0)
  unit = np.where(largest > 0, largest, 1)  # No sum of squares overflows.
  mean = (values / unit).sum(0) / count
  squares = np.where(known, (values / unit - mean) ** 2, 0).sum(0) / count
  deviation = np.sqrt(squares)
  scale = np.where(deviation > 1e-12, deviation, 1)
  return mean * unit, scale * unit


def _padded(number: int, least: int) -> int:
  """Returns the next power of two that is not below `least`."""
  return max(least, 1 << (number - 1).bit_length())


def _filled(x: np.ndarray, rows: int, width: int) -> np.ndarray:
  """Pads with rows of zeros, and with absent columns."""
  x = np.pad(x, ((0, rows - len(x)), (0, 0)))
  gap = width - x.shape[1]
  return np.pad(x, ((0, 0), (0, gap)), constant_values=np.nan)


def _key(recipe: Recipe) -> str:
  return json.dumps(recipe._asdict(), sort_keys=True)


@functools.lru_cache(maxsize=4)
def _programs(key: str) -> tuple[Any, Any]:
  learner = build(Recipe(**json.loads(key)))

  def adapt(params: Any, support: Batch, key: Any) -> Any:
    # Of one kind, whatever the kind of new keys is.
    rng = jax.random.wrap_key_data(key, impl="threefry2x32")
    return learner.adapt(params, support, rng)

  return jax.jit(adapt), jax.jit(learner.predict)
