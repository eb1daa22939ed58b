"""Computes Gittins indices of Bernoulli arms, by comparison with a sure arm."""

import numpy as np

from metajax.numerics import check_counts

# The recursion stops where all later rewards are worth less than this.
TOLERANCE = 1e-5
# The largest number of pulls beyond the table. The posterior is narrow then.
MAX_BEYOND = 1000


def gittins_indices(
  num_pulls: int, discount: float, *, num_rates: int = 1001
) -> np.ndarray:
  """Computes the Gittins indices of a Bernoulli arm with a uniform prior.

  The index of an arm after s successes and f failures is the reward of a sure
  arm at which two choices have the same value: to take the sure arm for ever,
  or to pull the arm once and then to play optimally (Gittins 1979)::

    V(s, f) = max(rate / (1 - discount),
                  p (1 + discount V(s + 1, f)) + (1 - p) discount V(s, f + 1))
    p = (s + 1) / (s + f + 2)

  All indices are computed at once on a grid of rates. The advantage of pulling
  is interpolated linearly between the points of the grid. The error is below
  1e-4.

  Args:
    num_pulls: the table has the indices for `s + f < num_pulls`.
    discount: the discount of a reward one pull later, in (0, 1).
    num_rates: number of points of the grid.

  Returns:
    float64 `[num_pulls, num_pulls]`, indexed by successes and failures. Entries
    with `s + f >= num_pulls` are NaN.

  Raises:
    ValueError: if the discount is not between 0 and 1, or if `num_pulls` is
      less than 1 or `num_rates` less than 2.
  """
  check_counts(num_pulls=num_pulls)
  check_counts(num_rates=num_rates, at_least=2)
  if not 0 < discount < 1:
    raise ValueError(f"discount={discount}: must be between 0 and 1.")
  rates = np.linspace(0, 1, num_rates)[:, None]
  sure = rates / (1 - discount)
  beyond = int(np.ceil(np.log(TOLERANCE * (1 - discount)) / np.log(discount)))
  last = num_pulls + min(beyond, MAX_BEYOND)
  # After `last` pulls, the posterior mean is taken as the true probability, and
  # the player takes the better arm for ever.
  mean = (np.arange(last + 1) + 1) / (last + 2)
  value = np.maximum(rates, mean) / (1 - discount)  # [rates, successes]
  indices = np.full((num_pulls, num_pulls), np.nan)
  for pulls in range(last - 1, -1, -1):
    successes = np.arange(pulls + 1)
    p = (successes + 1) / (pulls + 2)
    pull = p * (1 + discount * value[:, 1:]) + (
      (1 - p) * discount * value[:, :-1]
    )
    if pulls < num_pulls:
      advantage = pull - sure  # Decreases with the rate.
      above = (advantage > 0).sum(axis=0)
      low, high = (
        advantage[above - 1, successes],
        advantage[np.minimum(above, num_rates - 1), successes],
      )
      part = low / np.maximum(low - high, 1e-300)
      indices[successes, pulls - successes] = np.minimum(
        (above - 1 + part) / (num_rates - 1), 1.0
      )
    value = np.maximum(pull, sure)
  return indices
