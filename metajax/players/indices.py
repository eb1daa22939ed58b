"""Gittins indices of Bernoulli arms, by calibration against a known arm."""

import numpy as np

# An arm is followed until what lies beyond is worth less than this.
TOLERANCE = 1e-5
# At most as many pulls beyond the table, by whose end a posterior is narrow.
MAX_BEYOND = 1000


def gittins_indices(
  num_pulls: int, discount: float, *, num_rates: int = 1001
) -> np.ndarray:
  """Computes the indices of an arm whose probability is uniform at first.

  The index of an arm after s successes and f failures is the sure reward at
  which it is as good to take that for ever as to pull once more and then do
  what is best (Gittins 1979)::

    V(s, f) = max(rate / (1 - discount),
                  p (1 + discount V(s + 1, f)) + (1 - p) discount V(s, f + 1))
    p = (s + 1) / (s + f + 2)

  It is found for all arms at once, on a grid of rates, between whose points the
  advantage of pulling is taken to be linear; the error is below 1e-4.

  Args:
    num_pulls: the table is for `s + f < num_pulls`.
    discount: of a reward one pull later, in (0, 1).
    num_rates: points of the grid.

  Returns:
    float64 `[num_pulls, num_pulls]`, by successes and failures; NaN where there
    are more pulls than that.

  Raises:
    ValueError: if the discount is not between 0 and 1.
  """
  if not 0 < discount < 1:
    raise ValueError(f"discount={discount}: must be between 0 and 1.")
  rates = np.linspace(0, 1, num_rates)[:, None]
  sure = rates / (1 - discount)
  beyond = int(np.ceil(np.log(TOLERANCE * (1 - discount)) / np.log(discount)))
  last = num_pulls + min(beyond, MAX_BEYOND)
  # After `last` pulls the mean is known: the better one is taken for ever.
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
