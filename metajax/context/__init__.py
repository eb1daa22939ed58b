"""Learners that learn in context: they read a task's support, without steps.

Each is a function that builds a `MetaLearner` whose `predict` returns a
predictive distribution, see `metajax.predictive`. They are trained by its
likelihood.
"""

from metajax.context.alpaca import alpaca
from metajax.context.attended import attended
from metajax.context.attentive import attentive_neural_process
from metajax.context.autoregressive import tnp_a
from metajax.context.bars import Bars, quantile_edges
from metajax.context.bayesian_maml import bayesian_maml
from metajax.context.convolutional import convolutional_process
from metajax.context.correlated import tnp_nd
from metajax.context.joint import Joint, log_density, of_marginals
from metajax.context.linear_attention import (
  attention_descent,
  gradient_step,
  linear_attention,
)
from metajax.context.memory import External, memory_augmented
from metajax.context.neural_process import (
  conditional_attentive_process,
  conditional_neural_process,
)
from metajax.context.objectives import maximum_likelihood
from metajax.context.playing import reading_network
from metajax.context.prior_fitted import prior_fitted
from metajax.context.registry import LEARNERS
from metajax.context.sequence import (
  SequenceTransformer,
  sequence_transformer,
  transformer_learner,
)
from metajax.context.sequences import READERS, build_reader
from metajax.context.snail import snail
from metajax.context.test_time_training import ttt_linear
from metajax.context.transformer import Cache, Transformer, transformer
from metajax.context.transformer_process import tnp_d
from metajax.context.transformer_readers import (
  interleaved_transformer,
  paired_transformer,
)

__all__ = [
  "Bars",
  "Cache",
  "External",
  "Joint",
  "LEARNERS",
  "READERS",
  "SequenceTransformer",
  "Transformer",
  "alpaca",
  "attended",
  "attention_descent",
  "attentive_neural_process",
  "bayesian_maml",
  "build_reader",
  "conditional_attentive_process",
  "conditional_neural_process",
  "convolutional_process",
  "gradient_step",
  "interleaved_transformer",
  "linear_attention",
  "log_density",
  "maximum_likelihood",
  "memory_augmented",
  "of_marginals",
  "paired_transformer",
  "prior_fitted",
  "quantile_edges",
  "reading_network",
  "sequence_transformer",
  "snail",
  "tnp_a",
  "tnp_d",
  "tnp_nd",
  "transformer",
  "transformer_learner",
  "ttt_linear",
]
