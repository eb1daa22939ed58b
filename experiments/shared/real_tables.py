"""Real tables of scikit-learn, and the usual classifiers to compare with."""

import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metajax.evaluation import Estimate, estimate
from metajax.runs import plots
from metajax.training.logging import tell

Table = tuple[np.ndarray, np.ndarray]
OURS = "in_context"
TITLES = {
  OURS: "in context",
  "logistic": "logistic regression",
  "forest": "random forest",
  "boosting": "gradient boosting",
}


def tables() -> dict[str, Table]:
  """Returns the tables by name: inputs `[rows, features]`, classes `[rows]`."""
  from sklearn import datasets

  x, y = datasets.load_digits(return_X_y=True)
  five = y < 5
  # The pixels of the middle, 4 rows of 4.
  middle = np.arange(64).reshape(8, 8)[2:6, 2:6].ravel()
  return {
    "iris": datasets.load_iris(return_X_y=True),
    "wine": datasets.load_wine(return_X_y=True),
    "breast_cancer": datasets.load_breast_cancer(return_X_y=True),
    "digits_5_classes": (x[five][:, middle], y[five]),
    "digits": (x, y),
  }


def classifiers(ours: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
  """Returns the constructors of all classifiers, with default settings."""
  from sklearn.ensemble import (
    GradientBoostingClassifier,
    RandomForestClassifier,
  )
  from sklearn.linear_model import LogisticRegression
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler

  return {
    OURS: ours,
    "logistic": lambda: make_pipeline(StandardScaler(), LogisticRegression()),
    "forest": lambda: RandomForestClassifier(random_state=0),
    "boosting": lambda: GradientBoostingClassifier(random_state=0),
  }


def compare(
  ours: Callable[[], Any], num_splits: int, num_rows: int
) -> dict[str, dict[str, np.ndarray]]:
  """Scores all classifiers on random splits of all tables.

  A split has a training part of half the rows, at most `num_rows`, with the
  frequencies of the classes, and tests on the other rows.

  Args:
    ours: makes the classifier in context.
    num_splits: splits of a table.
    num_rows: the most training rows.

  Returns:
    By table, by `CLASSIFIER_accuracy`, `_log_loss` and `_seconds`, values
    `[splits]`.
  """
  from sklearn.metrics import log_loss
  from sklearn.model_selection import train_test_split

  found: dict[str, dict[str, np.ndarray]] = {}
  for table, (x, y) in tables().items():
    tell(f"{num_splits} splits of {table}")
    values: dict[str, list[float]] = {}
    for seed in range(num_splits):
      size = min(len(x) // 2, num_rows)
      parts = train_test_split(
        x, y, train_size=size, stratify=y, random_state=seed
      )
      for name, make in classifiers(ours).items():
        start = time.perf_counter()
        with warnings.catch_warnings():
          warnings.simplefilter("ignore")  # Of steps that do not converge.
          chances = make().fit(parts[0], parts[2]).predict_proba(parts[1])
        scores = {
          "accuracy": np.mean(chances.argmax(1) == parts[3]),
          "log_loss": log_loss(parts[3], chances),
          "seconds": time.perf_counter() - start,
        }
        for score, value in scores.items():
          values.setdefault(f"{name}_{score}", []).append(float(value))
    found[table] = {k: np.asarray(v) for k, v in values.items()}
  return found


def estimates(
  found: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, Estimate]:
  """Returns means over splits, and paired differences of ours and others."""
  metrics = {}
  for table, values in found.items():
    for name, value in values.items():
      metrics[f"{table}_{name}"] = estimate(value)
    for name in TITLES:
      if name == OURS:
        continue
      for score in ("accuracy", "log_loss"):
        pair = values[f"{OURS}_{score}"] - values[f"{name}_{score}"]
        metrics[f"{table}_{score}_minus_{name}"] = estimate(pair)
  return metrics


def draw(path: Path, metrics: Mapping[str, Estimate]) -> None:
  """Draws the accuracies by table, with their intervals."""
  figure, axes = plots.pyplot().subplots(figsize=(7, 3.6), layout="constrained")
  names = list(tables())
  for number, (key, title) in enumerate(TITLES.items()):
    shown = [metrics[f"{table}_{key}_accuracy"] for table in names]
    axes.errorbar(
      np.arange(len(names)) + 0.12 * (number - 1.5),
      [100 * e.mean for e in shown],
      [100 * e.ci95 for e in shown],
      fmt="o",
      capsize=2,
      label=title,
    )
  axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names])
  axes.set_ylabel("accuracy in percent")
  axes.grid(alpha=0.3)
  axes.legend()
  plots.save(figure, path)
