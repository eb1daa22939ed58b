"""Calls of the compiled training loop: how long, and the means over them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# A call lasts about this long, so that signals and the progress bar are served
# in time.
SECONDS = 1.0


class Call(NamedTuple):
  """One call of the compiled loop.

  Attributes:
    steps: how many steps it took.
    seconds: how long it took.
    metrics: means over its steps.
  """

  steps: int
  seconds: float
  metrics: Mapping[str, Any]


def next_length(steps: int, seconds: float) -> int:
  """Returns how many steps the next call takes.

  It grows by at most 8, so that one lucky call does not make a long one.
  """
  return max(1, min(8 * steps, int(steps / seconds * SECONDS)))


def means(calls: Sequence[Call], tasks_per_step: int) -> dict[str, float]:
  """Returns means over the steps of calls, and "tasks_per_second".

  A call whose steps were all skipped has means of NaN, and no weight. The mean
  over such calls alone is NaN.
  """
  found = {}
  for name in calls[0].metrics:
    total = weights = 0.0
    for steps, _, metrics in calls:
      # What is skipped counts in nothing but "skipped".
      skipped = 0.0 if name == "skipped" else float(metrics.get("skipped", 0.0))
      weight = steps * (1.0 - skipped)
      if weight > 0:
        total += weight * float(metrics[name])
        weights += weight
    found[name] = total / weights if weights else math.nan
  steps = sum(call.steps for call in calls)
  seconds = sum(call.seconds for call in calls)
  return {**found, "tasks_per_second": steps * tasks_per_step / seconds}
