"""Meta-learners by name, including those of other packages."""

import functools
from collections.abc import Callable
from importlib import metadata

from metajax.learners.bootstrapped import bmg
from metajax.learners.cavia import OPTIONS as OF_CAVIA
from metajax.learners.cavia import cavia
from metajax.learners.closed_form import (
  OF_SVM,
  cosine_prototypes,
  prototypical,
  ridge_regression,
  support_vector_machine,
)
from metajax.learners.implicit import OPTIONS as OF_IMAML
from metajax.learners.implicit import imaml
from metajax.learners.maml import maml
from metajax.learners.maml_plus_plus import OPTIONS as OF_MAML_PLUS_PLUS
from metajax.learners.maml_plus_plus import maml_plus_plus
from metajax.learners.meta_curvature import meta_curvature
from metajax.learners.meta_sgd import meta_sgd
from metajax.learners.options import Option
from metajax.learners.partition import all_but_last_layer, last_layer
from metajax.learners.recurrent import recurrent
from metajax.learners.reptile import OPTIONS as OF_REPTILE
from metajax.learners.reptile import reptile
from metajax.types import MetaLearner

ENTRY_POINTS = "metajax.learners"

# Constructors by name. `--learner` and the contract tests read this table.
REGISTRY: dict[str, Callable[..., MetaLearner]] = {}
# The options that only one learner has, by the name of the learner.
OPTIONS: dict[str, tuple[Option, ...]] = {}
# Learners whose model only encodes inputs. They take `num_outputs`.
ENCODED: set[str] = set()
# Learners whose meta-parameters work for any number of classes.
ANY_WAYS: set[str] = set()
# Learners that predict classes only, not numbers.
CLASSIFIERS: set[str] = set()
# Learners whose number of inner steps at test may be traced.
TRACED_STEPS: set[str] = set()
# Learners that factorise a matrix for each task. On several devices of a CPU
# they need `training.use_cpu_cores(spare_threads=True)`.
FACTORISING: set[str] = set()


def register(
  name: str,
  constructor: Callable[..., MetaLearner],
  options: tuple[Option, ...] = (),
  *,
  encoded: bool = False,
  any_ways: bool = False,
  classes_only: bool = False,
  traced_steps: bool = False,
  factorises: bool = False,
) -> None:
  """Registers a learner under a name, for `--learner` of the experiments.

  To register a learner of your own package, call `register` in a function
  without arguments. Name that function in the package's `setup.cfg`::

    [options.entry_points]
    metajax.learners =
      mine = my_package.my_learner:register

  Args:
    name: name of the learner.
    constructor: `(model, loss_fn, inner_optimizer, num_steps, *,
      num_eval_steps, metrics, memory)`, as `metajax.learners.maml`. It also
      takes the arguments of its options.
    options: the options that only this learner has. Each becomes a flag.
    encoded: whether the learner's model only encodes inputs. If so, the
      constructor is called with `num_outputs`, too.
    any_ways: whether the learner's meta-parameters work for any number of
      classes.
    classes_only: whether the learner predicts classes only, not numbers.
    traced_steps: whether `num_eval_steps` may be a traced number. One compiled
      program then scores the learner after any number of steps.
    factorises: whether the learner factorises, inverts or solves matrices.
      Scripts then have spare threads, see `training.use_cpu_cores`.

  Raises:
    ValueError: if the name is taken, or the name of an option by another
      learner or by an earlier option.
  """
  if name in REGISTRY:
    raise ValueError(f"learner {name!r} is registered already: rename one.")
  taken = {option.name: other for other, o in OPTIONS.items() for option in o}
  for option in options:
    if option.name in taken:
      raise ValueError(
        f"learner {name!r}: option {option.name!r} is that of "
        f"{taken[option.name]!r}; rename it."
      )
    taken[option.name] = name
  REGISTRY[name] = constructor
  OPTIONS[name] = options
  if encoded:
    ENCODED.add(name)
  if any_ways:
    ANY_WAYS.add(name)
  if classes_only:
    CLASSIFIERS.add(name)
  if traced_steps:
    TRACED_STEPS.add(name)
  if factorises:
    FACTORISING.add(name)


@functools.cache
def register_installed() -> None:
  """Registers the learners of installed packages, see `register`.

  Raises:
    ValueError: if an entry point fails. The message names it.
  """
  for point in metadata.entry_points(group=ENTRY_POINTS):
    try:
      point.load()()
    except Exception as error:
      raise ValueError(
        f"the entry point {point.name} = {point.value} of {ENTRY_POINTS} fails "
        f"({type(error).__name__}: {error}): mend or uninstall its package."
      ) from error


_register_stepwise = functools.partial(register, traced_steps=True)
_register_stepwise("maml", maml)
_register_stepwise("fomaml", functools.partial(maml, first_order=True))
_register_stepwise("anil", functools.partial(maml, mask=last_layer))
_register_stepwise("boil", functools.partial(maml, mask=all_but_last_layer))
_register_stepwise("maml_plus_plus", maml_plus_plus, OF_MAML_PLUS_PLUS)
_register_stepwise("meta_sgd", meta_sgd)
_register_stepwise("meta_curvature", meta_curvature)
_register_stepwise("cavia", cavia, OF_CAVIA)
_register_stepwise("imaml", imaml, OF_IMAML)
# Its minibatches are drawn for all steps at once.
register("reptile", reptile, OF_REPTILE)
_register_stepwise("bmg", bmg)
_register_classifier = functools.partial(
  register, encoded=True, any_ways=True, classes_only=True
)
_register_classifier("prototypical", prototypical)
_register_classifier("cosine", cosine_prototypes)
_register_classifier("svm", support_vector_machine, OF_SVM, factorises=True)
register(
  "ridge", ridge_regression, encoded=True, any_ways=True, factorises=True
)
register("recurrent", recurrent, encoded=True)
