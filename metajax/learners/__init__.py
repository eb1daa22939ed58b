"""Meta-learning algorithms. Each is a function that builds a `MetaLearner`."""

from metajax.learners.aggregated import learned_average, learned_ensemble
from metajax.learners.bootstrapped import bmg
from metajax.learners.cavia import cavia
from metajax.learners.closed_form import (
  cosine_prototypes,
  prototypical,
  ridge_regression,
  support_vector_machine,
)
from metajax.learners.distilled_data import distill_data
from metajax.learners.embedding import embedding
from metajax.learners.fine_tuned import fine_tuned
from metajax.learners.heads import (
  Head,
  cosine,
  logistic,
  nearest_mean,
  ridge,
)
from metajax.learners.implicit import imaml
from metajax.learners.maml import maml
from metajax.learners.maml_plus_plus import maml_plus_plus
from metajax.learners.meta_curvature import meta_curvature
from metajax.learners.meta_gradients import gradient_of_mean, mean_of_gradients
from metajax.learners.meta_sgd import meta_sgd
from metajax.learners.options import Option, Setting
from metajax.learners.partition import all_but_last_layer, last_layer
from metajax.learners.reading import (
  Reader,
  SequenceLearner,
  learn_by_reading,
  with_encoder,
)
from metajax.learners.recurrent import (
  recurrent,
  recurrent_reader,
  sequence_learner,
)
from metajax.learners.registry import (
  ANY_WAYS,
  CLASSIFIERS,
  ENCODED,
  FACTORISING,
  OPTIONS,
  REGISTRY,
  TRACED_STEPS,
  register,
)
from metajax.learners.reptile import reptile
from metajax.learners.svm import svm
from metajax.learners.taught import taught

__all__ = [
  "ANY_WAYS",
  "CLASSIFIERS",
  "ENCODED",
  "FACTORISING",
  "Head",
  "OPTIONS",
  "Option",
  "REGISTRY",
  "Reader",
  "SequenceLearner",
  "Setting",
  "TRACED_STEPS",
  "all_but_last_layer",
  "bmg",
  "cavia",
  "cosine",
  "cosine_prototypes",
  "distill_data",
  "embedding",
  "fine_tuned",
  "gradient_of_mean",
  "imaml",
  "last_layer",
  "learn_by_reading",
  "learned_average",
  "learned_ensemble",
  "logistic",
  "maml",
  "maml_plus_plus",
  "mean_of_gradients",
  "meta_curvature",
  "meta_sgd",
  "nearest_mean",
  "prototypical",
  "recurrent",
  "recurrent_reader",
  "register",
  "reptile",
  "ridge",
  "ridge_regression",
  "sequence_learner",
  "support_vector_machine",
  "svm",
  "taught",
  "with_encoder",
]
