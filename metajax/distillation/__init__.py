"""Models taught by models."""

from metajax.distillation.features import (
  attention_transfer,
  hint,
  relational_angle,
  relational_distance,
)
from metajax.distillation.losses import (
  knowledge_distillation,
  label_smoothing,
  logit_matching,
  mutual_learning,
  regression_distillation,
  softened_kl,
)
from metajax.distillation.teaching import (
  alone,
  ensemble,
  predict_all,
  taught,
  taught_by_peers,
)

__all__ = [
  "alone",
  "attention_transfer",
  "ensemble",
  "hint",
  "knowledge_distillation",
  "label_smoothing",
  "logit_matching",
  "mutual_learning",
  "predict_all",
  "regression_distillation",
  "relational_angle",
  "relational_distance",
  "softened_kl",
  "taught",
  "taught_by_peers",
]
