"""Optimizers with learned parameters, usable as any optimizer of optax."""

from metajax.learned_optimizers.adam import learned_adam
from metajax.learned_optimizers.perceptron import mlp_optimizer
from metajax.learned_optimizers.protocol import LearnedOptimizer, load, save
from metajax.learned_optimizers.recurrent import log_and_sign, lstm_optimizer
from metajax.learned_optimizers.sgd import learned_sgd

__all__ = [
  "LearnedOptimizer",
  "learned_adam",
  "learned_sgd",
  "load",
  "log_and_sign",
  "lstm_optimizer",
  "mlp_optimizer",
  "save",
]
