"""Meta-learning algorithms, each a constructor of a `MetaLearner`."""

import functools
from collections.abc import Callable

from metajax.learners.aggregated import learned_average, learned_ensemble
from metajax.learners.bootstrapped import bmg
from metajax.learners.cavia import cavia
from metajax.learners.closed_form import prototypical, ridge_regression
from metajax.learners.distilled_data import distill_data
from metajax.learners.embedding import embedding
from metajax.learners.heads import Head, logistic, nearest_mean, ridge
from metajax.learners.implicit import imaml
from metajax.learners.maml import maml
from metajax.learners.maml_plus_plus import maml_plus_plus
from metajax.learners.meta_gradients import gradient_of_mean, mean_of_gradients
from metajax.learners.meta_sgd import meta_sgd
from metajax.learners.partition import all_but_last_layer, last_layer
from metajax.learners.recurrent import recurrent, sequence_learner
from metajax.learners.reptile import reptile
from metajax.learners.taught import taught
from metajax.types import MetaLearner

# Every algorithm by name: what `--learner` reads and what the contract tests
# run over. A constructor is called as maml is: (model, loss_fn,
# inner_optimizer, num_steps, *, num_eval_steps, metrics, memory).
REGISTRY: dict[str, Callable[..., MetaLearner]] = {
  "maml": maml,
  "fomaml": functools.partial(maml, first_order=True),
  "anil": functools.partial(maml, mask=last_layer),
  "boil": functools.partial(maml, mask=all_but_last_layer),
  "maml_plus_plus": maml_plus_plus,
  "meta_sgd": meta_sgd,
  "cavia": cavia,
  "imaml": imaml,
  "reptile": reptile,
  "bmg": bmg,
  "prototypical": prototypical,
  "ridge": ridge_regression,
  "recurrent": recurrent,
}
# Those whose model only encodes inputs, which are best told `num_outputs`.
ENCODED = ("prototypical", "ridge", "recurrent")


__all__ = [
  "ENCODED",
  "Head",
  "REGISTRY",
  "all_but_last_layer",
  "bmg",
  "cavia",
  "distill_data",
  "embedding",
  "gradient_of_mean",
  "imaml",
  "last_layer",
  "learned_average",
  "learned_ensemble",
  "logistic",
  "maml",
  "maml_plus_plus",
  "mean_of_gradients",
  "meta_sgd",
  "nearest_mean",
  "prototypical",
  "recurrent",
  "reptile",
  "ridge",
  "ridge_regression",
  "sequence_learner",
  "taught",
]
