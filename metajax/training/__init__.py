"""Meta-training: the step, the devices, the loop, checkpoints and records.

Import `loop`, `checkpoint` and `logging` as modules. They are not imported
here, so that the training step works without orbax and TensorBoard.
"""

from metajax.training.chunking import choose_task_chunk
from metajax.training.clients import Clients
from metajax.training.cohorts import cohort_trainer
from metajax.training.federated import federated_trainer
from metajax.training.mesh import task_mesh, use_cpu_cores
from metajax.training.state import (
  StoppedEarly,
  Trainer,
  TrainState,
  evaluation_params,
  first_state,
  next_state,
)
from metajax.training.step import meta_trainer
from metajax.training.supervised import (
  loss_of,
  on_changed,
  supervised_trainer,
)

__all__ = [
  "Clients",
  "StoppedEarly",
  "Trainer",
  "TrainState",
  "choose_task_chunk",
  "cohort_trainer",
  "evaluation_params",
  "federated_trainer",
  "first_state",
  "loss_of",
  "meta_trainer",
  "next_state",
  "on_changed",
  "supervised_trainer",
  "task_mesh",
  "use_cpu_cores",
]
