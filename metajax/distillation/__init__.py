"""Distils models into models, and data sets into smaller data sets."""

from metajax.distillation.coresets import herding
from metajax.distillation.datasets import (
  distribution_matching,
  gradient_matching,
  kernel_inducing,
  unrolled,
)
from metajax.distillation.features import (
  attention_transfer,
  hint,
  relational_angle,
  relational_distance,
)
from metajax.distillation.kernels import (
  kernel_ridge,
  linear_kernel,
  relu_tangent_kernel,
)
from metajax.distillation.losses import (
  knowledge_distillation,
  label_smoothing,
  logit_matching,
  mutual_learning,
  regression_distillation,
  softened_kl,
)
from metajax.distillation.synthetic import (
  Objective,
  SyntheticSet,
  synthetic_set,
)
from metajax.distillation.teaching import (
  alone,
  ensemble,
  hinted,
  predict_all,
  side_by_side,
  taught,
  taught_by_peers,
)

__all__ = [
  "Objective",
  "SyntheticSet",
  "alone",
  "attention_transfer",
  "distribution_matching",
  "ensemble",
  "gradient_matching",
  "herding",
  "hint",
  "hinted",
  "kernel_inducing",
  "kernel_ridge",
  "knowledge_distillation",
  "label_smoothing",
  "linear_kernel",
  "logit_matching",
  "mutual_learning",
  "predict_all",
  "regression_distillation",
  "relational_angle",
  "relational_distance",
  "relu_tangent_kernel",
  "side_by_side",
  "softened_kl",
  "synthetic_set",
  "taught",
  "taught_by_peers",
  "unrolled",
]
