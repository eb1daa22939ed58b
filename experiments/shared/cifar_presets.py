"""Published protocols of few-shot CIFAR-100, as flags of `few_shot`."""

from typing import Any

Flags = dict[str, Any]

# MAML with 32 filters as on miniImageNet (Finn et al. 2017, section 5.2).
# Bertinetto et al. 2018 report 58.9 and 71.5 for it on CIFAR-FS. The inner loss
# of the original code is a sum over the classes of the mean over shots. Its
# step size 0.01 is therefore 0.05 on the mean loss here.
MAML: Flags = {
  "learner": "maml",
  "filters": 32,
  "inner_steps": 5,
  "inner_lr": 0.05,
  "eval_inner_steps": 10,
  "query_shots": 15,
  "outer_lr": 1e-3,
  "outer_schedule": "constant",
  "meta_batch": 4,
  "steps": 60_000,
}
# Oh et al. 2021: one inner step of size 0.5 on the mean loss, for all layers
# but the last one. 30,000 steps are those of their code.
BOIL: Flags = {
  "learner": "boil",
  "inner_steps": 1,
  "inner_lr": 0.5,
  "eval_inner_steps": 1,
  "query_shots": 15,
  "outer_lr": 1e-3,
  "outer_schedule": "constant",
  "meta_batch": 4,
  "steps": 30_000,
}
# Snell et al. 2017, section 3.2, on miniImageNet: more ways in training than at
# test, and one episode in a step. They halve the step size every 2,000 steps.
# These presets use a cosine schedule instead.
PROTOTYPICAL: Flags = {
  "learner": "prototypical",
  "train_ways": 30,
  "query_shots": 15,
  "outer_lr": 1e-3,
  "outer_schedule": "cosine",
  "meta_batch": 1,
  "steps": 20_000,
}
# Bertinetto et al. 2019, section 4.1, and their code: 20 ways and 1 to 9 shots
# in training, one episode in a step, a leaky ReLU, dropout, and the features of
# the last two blocks. Their step size is halved every 2,000 steps, for which
# these presets have a cosine schedule. The network of the paper has `WIDE`
# filters. Its last pooling has stride 1, here 2. In their code the penalty is a
# constant; here it is learned, as in the paper. One training serves all shots.
RIDGE: Flags = {
  "learner": "ridge",
  "slope": 0.1,
  "joined_blocks": 2,
  "late_drop_rate": 0.4,
  "normalization": "running",
  "train_ways": 20,
  "train_shots": [1, 9],
  "query_shots": 7,
  "eval_query_shots": 15,
  "outer_lr": 5e-3,
  "outer_schedule": "cosine",
  "meta_batch": 1,
  "steps": 20_000,
}
WIDE: Flags = {"filters": [96, 192, 384, 512]}
# Lee et al. 2019, section 4.1 (MetaOptNet-SVM): the shots of training do not
# depend on those of the test. They divide the step size 0.1 by 17, 83 and 417
# after 1/3, 2/3 and 5/6 of the steps. These presets have a cosine schedule and
# no label smoothing.
SVM: Flags = {
  "learner": "svm",
  "model": "resnet12",
  "pooled": False,
  "normalization": "running",
  "query_shots": 6,
  "eval_query_shots": 15,
  "augment": True,
  "color_jitter": 0.4,
  "outer_optimizer": "momentum",
  "outer_lr": 0.1,
  "outer_schedule": "cosine",
  "meta_batch": 8,
  "steps": 60_000,
}
SVM_SHOTS = {"cifar_fs": {"train_shots": 5}, "fc100": {"train_shots": 15}}
# Chen et al. 2021, second stage, as in their code for miniImageNet. The first
# stage is a run of `pretrain`, which --init_from names.
META_BASELINE: Flags = {
  "learner": "cosine",
  "init_from": "RUN_OF_PRETRAIN",
  "normalization": "running",
  "query_shots": 15,
  "outer_optimizer": "momentum",
  "outer_lr": 1e-3,
  "outer_schedule": "constant",
  "meta_batch": 4,
  "steps": 4_000,
}
FIVE_SHOT: Flags = {"shots": 5}
ROWS: dict[str, Flags] = {
  "maml_5w1s": MAML,
  "maml_5w5s": MAML | FIVE_SHOT | {"meta_batch": 2},
  "boil_5w1s": BOIL,
  "boil_5w5s": BOIL | FIVE_SHOT,
  "prototypical_5w1s": PROTOTYPICAL,
  "prototypical_5w5s": PROTOTYPICAL | FIVE_SHOT | {"train_ways": 20},
  "ridge_5w1s": RIDGE,
  "ridge_5w5s": RIDGE | FIVE_SHOT,
  "ridge_wide_5w1s": RIDGE | WIDE,
  "ridge_wide_5w5s": RIDGE | WIDE | FIVE_SHOT,
  "svm_5w1s": SVM,
  "svm_5w5s": SVM | FIVE_SHOT,
  "meta_baseline_5w1s": META_BASELINE,
  "meta_baseline_5w5s": META_BASELINE | FIVE_SHOT,
}
PRESETS = {
  f"{data}_{row}": {
    "data": data,
    **values,
    **(SVM_SHOTS[data] if values["learner"] == "svm" else {}),
  }
  for data in ("cifar_fs", "fc100")
  for row, values in ROWS.items()
}
