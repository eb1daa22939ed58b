"""Data and parameters of every form: trees, integers, numbers, dtypes.

A learner on inputs and targets that are trees does what it does on the same
numbers in one array.
"""

import functools
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import training
from metajax.learners import REGISTRY
from metajax.losses import accuracy, cross_entropy, mean_squared_error
from metajax.models.mlp import MLP
from metajax.types import Batch, Episode, State
from tests.slow import slow_but

RNG = jax.random.key(0)
TASKS, WAYS, FEATURES = 2, 3, 4
OPTIONS = {
  "recurrent": {"units": 8, "num_outputs": WAYS},
  "maml_plus_plus": {"step_normalization": False},
  "imaml": {"damping": 32.0},
}
NETWORK = MLP(WAYS, (8,))


@functools.cache
def _episodes():
  draw = np.random.default_rng(0)

  def batch(n):
    inputs = draw.normal(size=(TASKS, n, FEATURES)).astype(np.float32)
    labels = np.tile(np.arange(n, dtype=np.int32) % WAYS, (TASKS, 1))
    return Batch(inputs, labels)

  return Episode(batch(6), batch(5))


def _split_inputs(inputs):
  return {"left": inputs[..., :1], "rest": (inputs[..., 1:],)}


def _join_inputs(inputs):
  return jnp.concatenate([inputs["left"], *inputs["rest"]], axis=-1)


ON_TREES = SimpleNamespace(
  init=lambda rng, inputs: NETWORK.init(rng, _join_inputs(inputs)),
  apply=lambda params, x: NETWORK.apply(params, _join_inputs(x)),
)


def _with_trees(episodes):
  return jax.tree.map(
    lambda b: b._replace(inputs=_split_inputs(b.inputs)),
    episodes,
    is_leaf=lambda x: isinstance(x, Batch),
  )


def _build(name, model, loss_fn=cross_entropy, **options):
  return REGISTRY[name](
    model, loss_fn, optax.sgd(0.1), 2, **{**OPTIONS.get(name, {}), **options}
  )


# Those that are no other one with other arguments.
DISTINCT = [n for n in REGISTRY if n not in ("fomaml", "anil", "boil")]


FAST = ("maml", "reptile", "prototypical", "ridge")


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", slow_but(FAST, [n for n in DISTINCT if n != "cavia"])
)
def test_inputs_may_be_trees(name):
  flat, tree = _build(name, NETWORK), _build(name, ON_TREES)
  episodes = _episodes()
  of_trees = _with_trees(episodes)
  support = jax.tree.map(lambda x: x[0], (episodes.support, of_trees.support))
  params = flat.init(RNG, support[0].inputs)
  chex.assert_trees_all_equal(tree.init(RNG, support[1].inputs), params)

  @jax.jit
  def both(params, flat_episodes, tree_episodes):
    return (
      flat.meta_grad(params, flat_episodes, RNG),
      tree.meta_grad(params, tree_episodes, RNG),
    )

  chex.assert_trees_all_close(
    *both(params, episodes, of_trees), rtol=1e-4, atol=1e-6
  )


@pytest.mark.slow
def test_evaluation_of_trees():
  learner = _build("maml", ON_TREES)
  stored = jax.tree.map(jnp.asarray, _with_trees(_episodes()))
  tasks = jax.tree_util.Partial(
    lambda stored, rng: jax.tree.map(
      lambda x: x[jax.random.randint(rng, (), 0, TASKS)], stored
    ),
    stored,
  )
  params = learner.init(
    RNG, jax.tree.map(lambda x: x[0], stored.support.inputs)
  )
  found = metajax.evaluate(
    learner,
    params,
    tasks,
    {"accuracy": accuracy},
    RNG,
    num_tasks=4,
    transductive=False,
  )
  assert 0 <= found["accuracy"].mean <= 1


# Two outputs of one network, each with a target of its own.
TWO = SimpleNamespace(
  init=NETWORK.init,
  apply=lambda params, x: {
    "classes": NETWORK.apply(params, x),
    "size": NETWORK.apply(params, x)[..., 0],
  },
)


def _two_losses(predictions, targets):
  return cross_entropy(predictions["classes"], targets["classes"]) + jnp.mean(
    (predictions["size"] - targets["size"]) ** 2
  )


def _with_two_targets(episodes):
  return jax.tree.map(
    lambda b: b._replace(
      targets={"classes": b.targets, "size": b.inputs[..., 0]}
    ),
    episodes,
    is_leaf=lambda x: isinstance(x, Batch),
  )


# Learners that read targets, and say in one line what they need.
READERS = {
  **dict.fromkeys(
    ("prototypical", "cosine", "svm"),
    "a head of classes: targets must be one array, not a dict",
  ),
  "ridge": "ridge_regression: targets must be one array, not a dict of 2",
  "recurrent": "a sequence learner: targets must be one array, not a dict of 2",
  "bmg": "bmg without match: targets must be one array, not a dict of 2",
}


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", slow_but(FAST, [n for n in DISTINCT if n not in READERS])
)
def test_outputs_and_targets_may_be_trees(name):
  model = TWO
  if name == "cavia":
    model = SimpleNamespace(
      init=NETWORK.init,
      apply=TWO.apply,
    )
  episodes = _with_two_targets(_episodes())
  learner = _build(name, model, _two_losses)
  params = learner.init(RNG, episodes.support.inputs[0])
  grads, metrics = jax.jit(learner.meta_grad)(params, episodes, RNG)
  chex.assert_trees_all_equal_shapes(grads, params)
  chex.assert_tree_all_finite((grads, metrics))
  assert any(np.abs(g).max() > 1e-4 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", READERS)
def test_learners_say_what_targets_they_need(name):
  episodes = _with_two_targets(_episodes())
  model = MLP(None, (8,)) if name != "bmg" else TWO
  learner = _build(name, model, _two_losses)
  params = learner.init(RNG, episodes.support.inputs[0])
  with pytest.raises(ValueError, match=f"^{READERS[name]}"):
    jax.eval_shape(learner.meta_grad, params, episodes, RNG)


@pytest.mark.slow
def test_bmg_of_trees_by_a_match_of_its_own():
  episodes = _with_two_targets(_episodes())

  def match(predictions, goal):
    parts = jax.tree.map(mean_squared_error, predictions, goal)
    return sum(jax.tree.leaves(parts))

  learner = _build("bmg", TWO, _two_losses, match=match)
  params = learner.init(RNG, episodes.support.inputs[0])
  grads, _ = jax.jit(learner.meta_grad)(params, episodes, RNG)
  chex.assert_tree_all_finite(grads)


def test_cavia_says_what_inputs_it_needs():
  learner = _build("cavia", ON_TREES)
  inputs = _split_inputs(jnp.ones((6, FEATURES)))
  with pytest.raises(ValueError, match="^cavia: inputs must be one array"):
    learner.init(RNG, inputs)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16])
def test_cavia_takes_inputs_of_any_numbers(dtype):
  """Integers would cut the context, which begins at 0, to 0 for ever."""
  learner = _build("cavia", NETWORK, num_context=2)
  episodes = jax.tree.map(
    lambda x: (3 * abs(x)).astype(dtype) if x.dtype == np.float32 else x,
    _episodes(),
  )
  params = learner.init(RNG, episodes.support.inputs[0])
  support = jax.tree.map(lambda x: x[0], episodes.support)
  context = jax.jit(learner.adapt)(params, support, RNG)["context"]
  assert jnp.issubdtype(context.dtype, jnp.floating)
  assert np.abs(context).min() > 0


# --- Parameters. ---


def _model(params):
  """A line whose parameters also hold what is no weight."""
  return SimpleNamespace(
    init=lambda rng, inputs: params,
    apply=lambda p, x: x @ jnp.ones((FEATURES, 1)) * p["slope"] + p["offset"],
  )


ODD = {
  "integers": {
    "slope": np.float32(1),
    "offset": np.float32(0),
    "n": np.int32(3),
  },
  "numbers": {"slope": 1.0, "offset": 0.0},
  "mixed": {"slope": jnp.bfloat16(1), "offset": np.float32(0)},
  "state": {"slope": np.float32(1), "offset": np.float32(0), "s": State(2.5)},
}
ODD["all"] = (
  ODD["state"] | ODD["integers"] | {"slope": jnp.bfloat16(1), "offset": 0.0}
)
NO_LAYERS = ("prototypical", "cosine", "svm", "ridge", "recurrent", "cavia")
CASES = [("maml", kind) for kind in ODD]
CASES += [(n, "all") for n in DISTINCT if n not in NO_LAYERS and n != "maml"]


@pytest.mark.slow
@pytest.mark.parametrize(
  "case",
  slow_but([("maml", "all"), ("reptile", "all")], CASES),
  ids="-".join,
)
def test_parameters_of_any_form(case):
  name, kind = case
  learner = _build(name, _model(ODD[kind]), mean_squared_error)

  def tasks(rng):
    x = jax.random.normal(rng, (8, FEATURES))
    y = 2 * x.sum(-1, keepdims=True) + 1
    return Episode(Batch(x[:4], y[:4]), Batch(x[4:], y[4:]))

  trainer = training.meta_trainer(
    learner, optax.adamw(0.1, weight_decay=0.1), tasks, meta_batch=2, rng=RNG
  )
  state = trainer.init(RNG)
  before = jax.tree.map(np.asarray, state.meta_params)
  train, _ = trainer.compile(state)
  state, _ = train(state, 3)
  state, _ = train(state, 2)
  assert int(state.step) == 5
  before, after = (
    p["params"] if "params" in p else p for p in (before, state.meta_params)
  )
  assert after["slope"].dtype == before["slope"].dtype
  assert abs(float(after["slope"] - before["slope"])) > 0.01
  for fixed in set(after) - {"slope", "offset"}:
    chex.assert_trees_all_equal(after[fixed], before[fixed])
