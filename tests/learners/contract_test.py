"""What every meta-learner of the registry owes, on regression and on classes.

A new entry of `metajax.learners.REGISTRY` is covered as it is. If its
meta-gradient is the exact gradient of the "loss" that it reports, add its name
to `EXACT`. The checks are those of `metajax.testing`.
"""

import itertools
import re
import unittest
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import pytest

from metajax import testing
from metajax.learners import (
  CLASSIFIERS,
  ENCODED,
  FACTORISING,
  REGISTRY,
  TRACED_STEPS,
)
from metajax.learners.registry import register_installed

# Learners whose meta_grad is the gradient of the very "loss" it reports.
EXACT = [
  "maml",
  "maml_plus_plus",
  "anil",
  "boil",
  "meta_sgd",
  "meta_curvature",
  "cavia",
  "prototypical",
  "cosine",
  "svm",
  "ridge",
  "recurrent",
]

# What a learner is given here beside the rest.
OPTIONS = {
  "recurrent": {"units": 16},
  # The Hessians here have eigenvalues from -9 on: with it the equations are
  # positive definite, and well conditioned; without it rounding decides what is
  # solved.
  "imaml": {"damping": 32.0},
  # The network here has none.
  "maml_plus_plus": {"step_normalization": False},
  # What is reported for nothing is not of the support alone.
  "reptile": {"held_out_report": True},
}

# Those of the angles between features, and of their margins. As the biases of a
# network are 0 at first, inputs of one sign have one direction: angles are
# equal, and more examples are on margins than a derivative can keep there.
DIRECTED = ["cosine", "svm"]

# Those that are no other one with other arguments.
register_installed()  # Learners of other packages are tested, too.
DISTINCT = [n for n in REGISTRY if n not in ("fomaml", "anil", "boil")]

# Those that differentiate through an inner loop.
DIFFERENTIATED = [
  "maml",
  "maml_plus_plus",
  "meta_sgd",
  "meta_curvature",
  "cavia",
]

RNG = jax.random.key(0)


def _with_offsets(model) -> SimpleNamespace:
  """Lets a network begin with biases."""

  def init(rng, inputs):
    def moved(path, x):
      if path[-1].key != "bias":
        return x
      return x + jax.random.normal(jax.random.fold_in(rng, x.size), x.shape)

    return jax.tree.map_with_path(moved, model.init(rng, inputs))

  return SimpleNamespace(init=init, apply=model.apply)


def _cases(names=tuple(REGISTRY), settings=tuple(testing.SETTINGS)):
  return [
    pytest.param((name, setting), marks=_marks(name, setting))
    for name, setting in itertools.product(names, settings)
    if name not in CLASSIFIERS or setting == "classification"
  ]


def _marks(name, setting):
  """Marks all as slow but learners that are unlike each other."""
  few = ["maml", "reptile", "recurrent"]
  if setting == "classification":
    few += ["imaml", "meta_sgd", "prototypical", "ridge"]
  return () if name in few else pytest.mark.slow


@pytest.fixture(scope="module", params=_cases(), ids="-".join)
def case(request) -> testing.Case:
  name, setting = request.param
  model = testing.SETTINGS[setting].model
  return testing.case(
    name,
    setting,
    model=_with_offsets(model) if name in DIRECTED else None,
    **OPTIONS.get(name, {}),
  )


def only(*pairs, **chosen):
  """Runs a test on some of the learners (names) and settings."""
  return pytest.mark.parametrize(
    "case",
    [*pairs, *_cases(**chosen)],
    ids="-".join,
    indirect=True,
    scope="module",
  )


@pytest.mark.parametrize(
  "check",
  [
    testing.check_gradients_are_like_the_parameters,
    testing.check_same_key_same_result,
    testing.check_tasks_adapt_under_vmap_as_alone,
    testing.check_reported_metric_is_that_of_the_predictions,
    testing.check_checkpoints_restore_every_bit,
    testing.check_training_improves,
  ],
)
def test_contract(check, case):
  check(case)


@only(settings=["classification"])
def test_random_labels_give_chance(case):
  testing.check_random_labels_give_chance(case)


@only(
  names=[n for n in REGISTRY if n not in ENCODED], settings=["classification"]
)
def test_accuracy_before_adaptation_is_chance(case):
  testing.check_accuracy_before_adaptation_is_chance(case)


@pytest.mark.slow
def test_those_that_factorise_matrices_say_so(case, request):
  """Where they do not, training on several CPU cores may wait for ever."""
  name, _ = request.node.callspec.params["case"]
  traced = str(
    jax.make_jaxpr(case.learner.meta_grad)(case.params, case.episodes, RNG)
  )
  factorised = re.search(r" = (lu|cholesky|eigh|svd|qr)\b", traced)
  assert bool(factorised) == (name in FACTORISING)


@only(names=sorted(TRACED_STEPS), settings=["regression"])
def test_steps_may_be_traced(case):
  testing.check_steps_may_be_traced(case)


@only(names=EXACT)
def test_gradient_is_exact_where_it_should_be(case):
  testing.check_gradient_is_exact(case)


@pytest.mark.slow
def test_a_chunk_is_the_mean_of_its_tasks(case):
  testing.check_a_chunk_is_the_mean_of_its_tasks(case)


# Slow, since every operation is compiled by itself: one setting is enough, and
# one of the learners that are one function.
@pytest.mark.slow
@only(
  *_cases(sorted(CLASSIFIERS), ["classification"]),
  names=DISTINCT,
  settings=["regression"],
)
def test_compiled_equals_uncompiled(case):
  testing.check_compiled_equals_uncompiled(case)


@pytest.mark.slow
@only(settings=["classification"])
def test_bfloat16_gradients_are_close(case):
  testing.check_bfloat16_gradients_are_close(case)


# None of the ways of the inner loop knows anything of the loss.
@pytest.mark.parametrize("memory", ["plain", "remat", "nested"])
@only(names=DIFFERENTIATED, settings=["regression"])
def test_memory_changes_no_gradient(case, memory):
  other = jax.jit(case.build(memory=memory).meta_grad)
  chex.assert_trees_all_close(
    other(case.params, case.episodes, RNG),
    case.meta_grad(case.params, case.episodes, RNG),
    rtol=1e-5,
    atol=1e-6,
  )


def test_the_learner_of_the_pages_keeps_the_contract():
  root = Path(__file__).resolve().parents[2]
  page = (root / "docs" / "own_learner.md").read_text()
  (code,) = re.findall(r"(?s)```python\n(# my_package/.*?)```", page)
  names = {}
  exec(code, names)
  case = testing.case(names["joint"], "regression", weight=0.5)
  testing.check_gradients_are_like_the_parameters(case)
  testing.check_reported_metric_is_that_of_the_predictions(case)
  testing.check_gradient_is_exact(case)


def test_every_check_is_made_here():
  text = Path(__file__).read_text()
  assert all(f"testing.{check.__name__}" in text for check in testing.CHECKS)


def test_a_check_that_does_not_apply_skips_and_a_wrong_name_is_refused():
  with pytest.raises(unittest.SkipTest, match="classes"):
    testing.case("prototypical", "regression")
  with pytest.raises(ValueError, match="register it first"):
    testing.case("mine", "regression")
  with pytest.raises(ValueError, match="setting 'images'"):
    testing.case("maml", "images")
