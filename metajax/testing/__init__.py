"""Checks of the contract of a meta-learner, for tests of learners of your own.

A test file of your package needs pytest and these lines::

  import pytest
  from metajax import testing

  @pytest.fixture(scope="module", params=["regression", "classification"])
  def case(request):
    return testing.case("mine", request.param)

  @pytest.mark.parametrize("check", testing.CHECKS)
  def test_contract(check, case):
    check(case)

`"mine"` is the name of a registered learner, or its constructor. If its
meta-gradient is the exact gradient of the loss that it reports, add
`testing.check_gradient_is_exact(case)` as another test.

A check raises an `AssertionError`. Where it does not apply to the case, it
raises `unittest.SkipTest`, which pytest understands.
"""

from metajax.testing.cases import Case, case
from metajax.testing.contract import (
  check_a_chunk_is_the_mean_of_its_tasks,
  check_bfloat16_gradients_are_close,
  check_checkpoints_restore_every_bit,
  check_compiled_equals_uncompiled,
  check_gradient_is_exact,
  check_gradients_are_like_the_parameters,
  check_reported_metric_is_that_of_the_predictions,
  check_same_key_same_result,
  check_steps_may_be_traced,
  check_tasks_adapt_under_vmap_as_alone,
)
from metajax.testing.learning import (
  check_accuracy_before_adaptation_is_chance,
  check_random_labels_give_chance,
  check_training_improves,
)
from metajax.testing.settings import SETTINGS, Setting

# What every learner owes. The whole takes one minute a case on a CPU.
CHECKS = (
  check_gradients_are_like_the_parameters,
  check_same_key_same_result,
  check_a_chunk_is_the_mean_of_its_tasks,
  check_tasks_adapt_under_vmap_as_alone,
  check_reported_metric_is_that_of_the_predictions,
  check_compiled_equals_uncompiled,
  check_bfloat16_gradients_are_close,
  check_checkpoints_restore_every_bit,
  check_steps_may_be_traced,
  check_training_improves,
  check_accuracy_before_adaptation_is_chance,
  check_random_labels_give_chance,
)

__all__ = [
  "CHECKS",
  "SETTINGS",
  "Case",
  "Setting",
  "case",
  "check_a_chunk_is_the_mean_of_its_tasks",
  "check_accuracy_before_adaptation_is_chance",
  "check_bfloat16_gradients_are_close",
  "check_checkpoints_restore_every_bit",
  "check_compiled_equals_uncompiled",
  "check_gradient_is_exact",
  "check_gradients_are_like_the_parameters",
  "check_random_labels_give_chance",
  "check_reported_metric_is_that_of_the_predictions",
  "check_same_key_same_result",
  "check_steps_may_be_traced",
  "check_tasks_adapt_under_vmap_as_alone",
  "check_training_improves",
]
