"""Learned weights of examples, against the formula of one step of SGD."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import bilevel, inner_loop
from metajax.types import Batch
from tests.optimizers import OPTIMIZERS

draw = np.random.default_rng(0).normal
PARAMS = draw(size=3)
BATCH = Batch(draw(size=(6, 3)), draw(size=6))
CLEAN = Batch(draw(size=(4, 3)), draw(size=4))


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def losses(params, batch):
  return jnp.square(batch.inputs @ params - batch.targets)


def _slopes(batch):
  """The gradients of the losses, by hand, `[n, 3]`."""
  errors = batch.inputs @ PARAMS - batch.targets
  return 2 * errors[:, None] * batch.inputs


def test_weights_are_aligned_gradients():
  """u_i is the product of its gradient with that of the clean loss."""
  weighting = bilevel.learning_to_reweight(losses, 0.1)
  found, _ = jax.jit(weighting.weigh)((), PARAMS, BATCH, CLEAN)
  aligned = np.maximum(_slopes(BATCH) @ _slopes(CLEAN).mean(0), 0)
  assert 0 < (aligned > 0).sum() < 6
  np.testing.assert_allclose(found, aligned / aligned.sum(), rtol=1e-9)


@pytest.mark.slow
def test_meta_weight_net_takes_a_step_down_the_clean_loss():
  """Its step is minus the rate times a finite difference."""
  rate, step_size = 0.5, 0.1
  weighting = bilevel.meta_weight_net(
    losses, step_size, optimizer=optax.sgd(rate), hidden=4
  )
  state = weighting.init(jax.random.key(0))
  state = jax.tree.map(lambda x: jnp.asarray(x, float), state)
  weigh = jax.jit(weighting.weigh)
  weights, (after, _) = weigh(state, PARAMS, BATCH, CLEAN)
  np.testing.assert_allclose(weights.sum(), 1)
  still = bilevel.meta_weight_net(
    losses, step_size, optimizer=optax.sgd(0.0), hidden=4
  )

  @jax.jit
  def clean_loss(theta):
    weights, _ = still.weigh((theta, state[1]), PARAMS, BATCH, CLEAN)
    moved = PARAMS - step_size * weights @ _slopes(BATCH)
    return losses(moved, CLEAN).mean()

  flat, unravel = jax.flatten_util.ravel_pytree(state[0])
  slopes = [
    (clean_loss(unravel(flat + h)) - clean_loss(unravel(flat - h))) / 2e-5
    for h in 1e-5 * np.eye(flat.size)
  ]
  moved = jax.flatten_util.ravel_pytree(after)[0] - flat
  np.testing.assert_allclose(moved, -rate * np.array(slopes), atol=1e-8)
  assert np.abs(moved).max() > 1e-4


@pytest.mark.slow
def test_flipped_labels_lose_their_weight():
  """Half of the targets of a regression have the wrong sign."""
  keys = jax.random.split(jax.random.key(0), 3)
  inputs = jax.random.normal(keys[0], (100, 3))
  targets = inputs @ PARAMS
  flipped = jnp.where(jnp.arange(100) < 50, -targets, targets)
  errors = {}
  for name, weighting in {
    "equal": bilevel.equal_weights(),
    "reweighted": bilevel.learning_to_reweight(losses, 0.1),
  }.items():
    found = jax.jit(
      lambda rng, weighting=weighting: bilevel.train_weighted(
        losses,
        weighting,
        optax.sgd(0.05),
        jnp.zeros(3),
        Batch(inputs, flipped),
        Batch(inputs[-10:], targets[-10:]),
        rng,
        num_steps=300,
        batch_size=20,
        clean_size=10,
      )
    )(keys[1])
    errors[name] = float(jnp.linalg.norm(found - PARAMS))
  # Equal weights find nothing: the two halves cancel out.
  assert errors["reweighted"] < 0.5 * errors["equal"]


def test_bad_numbers_of_weightings_are_named():
  with pytest.raises(ValueError, match="step_size=0: must be above 0"):
    bilevel.learning_to_reweight(losses, 0)
  with pytest.raises(ValueError, match="hidden=0: must be 1 or more"):
    bilevel.meta_weight_net(losses, 0.1, hidden=0)


def _train(losses=losses, data=BATCH, clean=CLEAN, params=PARAMS, **other):
  arguments = {"num_steps": 2, "batch_size": 3, "clean_size": 2} | other
  return bilevel.train_weighted(
    losses,
    arguments.pop("weighting", bilevel.equal_weights()),
    arguments.pop("optimizer", optax.sgd(0.1)),
    params,
    data,
    clean,
    jax.random.key(0),
    **arguments,
  )


@pytest.mark.parametrize(
  "change, message",
  [
    (
      {"data": BATCH._replace(mask=np.ones(6, bool))},
      "data: .* a mask",
    ),
    ({"clean": CLEAN._replace(mask=np.ones(4, bool))}, "clean: .* a mask"),
    ({"data": jax.tree.map(lambda x: x[:0], BATCH)}, "data: must be one or"),
    ({"losses": lambda p, b: losses(p, b).mean()}, r"losses: .* shape \(\)"),
    ({"losses": lambda p, b: losses(p, b)[:, None]}, r"losses: .*\(3, 1\)"),
    (
      {
        "weighting": bilevel.learning_to_reweight(
          lambda p, b: losses(p, b).mean(), 0.1
        )
      },
      r"losses: returned the shape \(\)",
    ),
    ({"optimizer": 0.1}, "optimizer=0.1: must be an optimizer of optax"),
  ],
)
def test_what_cannot_be_weighted_is_named(change, message):
  with pytest.raises(ValueError, match="^" + message):
    _train(**change)


@pytest.mark.parametrize("name", ["lookahead", "schedule_free", "sam"])
def test_any_optimizer_trains_and_its_average_is_returned(name):
  """With one example and equal weights it is an inner loop."""
  optimizer = OPTIMIZERS[name]()
  one = jax.tree.map(lambda x: x[:1], BATCH)
  start = {"w": jnp.zeros(3)}

  def of_examples(params, batch):
    return losses(params["w"], batch)

  def train(weighting, num_steps):
    return bilevel.train_weighted(
      of_examples,
      weighting,
      optimizer,
      start,
      one,
      CLEAN,
      jax.random.key(0),
      num_steps=num_steps,
      batch_size=1,
      clean_size=1,
    )

  expected = inner_loop.minimize(
    lambda p, _: of_examples(p, one)[0], start, optimizer, 3
  )
  found = train(bilevel.equal_weights(), 3)
  np.testing.assert_allclose(found["w"], expected.params["w"], rtol=1e-6)
  weighting = bilevel.meta_weight_net(
    of_examples, 0.1, optimizer=optimizer, hidden=2
  )
  assert np.isfinite(train(weighting, 1)["w"]).all()


def test_integers_beside_weights_get_no_step():
  params = {"w": PARAMS, "count": np.int32(3)}
  found = _train(lambda p, b: losses(p["w"], b), params=params)
  np.testing.assert_allclose(found["w"], _train(), rtol=1e-9)
  assert found["count"] == 3
