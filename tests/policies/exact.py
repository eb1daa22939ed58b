"""A two-state MDP in which all trajectories can be enumerated."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

HORIZON = 3
START = np.array([0.3, 0.7])
# [state, action, next state]
MOVES = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.6, 0.4], [0.1, 0.9]]])
REWARDS = np.array([[1.0, -0.5], [0.3, 2.0]])
THETA = np.array([0.4, -0.7, 0.2, 0.9])  # Logits, [state, action].


def trajectories():
  """Returns all `(states, actions)`, `[N, HORIZON]` each."""
  pairs = list(itertools.product(range(2), repeat=2 * HORIZON))
  both = np.array(pairs).reshape(-1, 2, HORIZON)
  return both[:, 0], both[:, 1]


STATES, ACTIONS = trajectories()
# The probability of the states, without that of the actions.
DYNAMICS = START[STATES[:, 0]] * np.prod(
  MOVES[STATES[:, :-1], ACTIONS[:, :-1], STATES[:, 1:]], axis=1
)
SEEN = REWARDS[STATES, ACTIONS]
TO_GO = SEEN[:, ::-1].cumsum(1)[:, ::-1]


def log_probs(theta):
  """Returns log pi(a_t | s_t) of all trajectories, `[N, HORIZON]`."""
  table = jax.nn.log_softmax(theta.reshape(2, 2))
  return table[STATES, ACTIONS]


def weights(theta):
  """Returns the probabilities of the trajectories, `[N]`."""
  return DYNAMICS * jnp.exp(log_probs(theta).sum(1))


def expected_return(theta):
  """Returns J, divided by the horizon as the surrogates are."""
  return (weights(theta) * SEEN.sum(1)).sum() / HORIZON


def expected_surrogate(surrogate, advantages, behaviour=None):
  """Returns `theta -> E surrogate`, with the expectation held constant.

  It is what a mean over many rollouts is in the limit. The trajectories are
  those of `behaviour`, or of theta itself.
  """
  mask = jnp.ones((1, HORIZON), bool)

  def loss(theta):
    acting = jax.lax.stop_gradient(theta if behaviour is None else behaviour)
    new, old = log_probs(theta), log_probs(acting)
    each = jax.vmap(lambda n, o, a: surrogate(n[None], o[None], a[None], mask))(
      new, jax.lax.stop_gradient(old), jnp.asarray(advantages)
    )
    return (weights(acting) * each).sum()

  return loss


def hessian_terms(theta):
  """Returns H_1 and H_2 of the expected return, divided by the horizon."""
  score = jax.jacfwd(log_probs)(theta)  # [N, T, n]
  second = jax.jacfwd(jax.jacfwd(log_probs))(theta)
  weighted = weights(theta)[:, None] * TO_GO / HORIZON
  first = jnp.einsum("nt,nti,ntj->ij", weighted, score, score)
  return first, jnp.einsum("nt,ntij->ij", weighted, second)
