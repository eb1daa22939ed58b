"""Every meta-learner by its name, those of other packages too."""

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

# Every algorithm by name: what `--learner` reads and what the contract tests
# run over.
REGISTRY: dict[str, Callable[..., MetaLearner]] = {}
# The options that are a learner's own.
OPTIONS: dict[str, tuple[Option, ...]] = {}
# Those whose model only encodes inputs, which are best told `num_outputs`.
ENCODED: set[str] = set()
# Those that tell any number of classes apart with the same meta-parameters.
ANY_WAYS: set[str] = set()
# Those of classes alone, not of numbers.
CLASSIFIERS: set[str] = set()


def register(
  name: str,
  constructor: Callable[..., MetaLearner],
  options: tuple[Option, ...] = (),
  *,
  encoded: bool = False,
  any_ways: bool = False,
  classes_only: bool = False,
) -> None:
  """Makes a learner known by name, to `--learner` of the experiments.

  A package of your own calls it in a function without arguments, and names that
  function in its `setup.cfg`::

    [options.entry_points]
    metajax.learners =
      mine = my_package.my_learner:register

  Args:
    name: what it is called.
    constructor: called as `metajax.learners.maml` is: `(model, loss_fn,
      inner_optimizer, num_steps, *, num_eval_steps, metrics, memory)`, and with
      its options.
    options: what is its own, each a flag.
    encoded: its model only encodes inputs; the constructor is told
      `num_outputs`.
    any_ways: it tells any number of classes apart with the same
      meta-parameters.
    classes_only: it does not predict numbers.

  Raises:
    ValueError: for a name, or an option, that is taken.
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
  REGISTRY[name] = constructor
  OPTIONS[name] = options
  if encoded:
    ENCODED.add(name)
  if any_ways:
    ANY_WAYS.add(name)
  if classes_only:
    CLASSIFIERS.add(name)


@functools.cache
def register_installed() -> None:
  """Registers the learners of installed packages, see `register`.

  Raises:
    ValueError: if one of them fails, with its package's entry point.
  """
  for point in metadata.entry_points(group=ENTRY_POINTS):
    try:
      point.load()()
    except Exception as error:
      raise ValueError(
        f"the entry point {point.name} = {point.value} of {ENTRY_POINTS} fails "
        f"({type(error).__name__}: {error}): mend or uninstall its package."
      ) from error


register("maml", maml)
register("fomaml", functools.partial(maml, first_order=True))
register("anil", functools.partial(maml, mask=last_layer))
register("boil", functools.partial(maml, mask=all_but_last_layer))
register("maml_plus_plus", maml_plus_plus, OF_MAML_PLUS_PLUS)
register("meta_sgd", meta_sgd)
register("meta_curvature", meta_curvature)
register("cavia", cavia, OF_CAVIA)
register("imaml", imaml, OF_IMAML)
register("reptile", reptile, OF_REPTILE)
register("bmg", bmg)
_register_classifier = functools.partial(
  register, encoded=True, any_ways=True, classes_only=True
)
_register_classifier("prototypical", prototypical)
_register_classifier("cosine", cosine_prototypes)
_register_classifier("svm", support_vector_machine, OF_SVM)
register("ridge", ridge_regression, encoded=True, any_ways=True)
register("recurrent", recurrent, encoded=True)
