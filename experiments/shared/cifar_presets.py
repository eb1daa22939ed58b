"""Published protocols of few-shot CIFAR-100, as flags of `few_shot`."""

# MAML with 32 filters as on miniImageNet (Finn et al. 2017, section 5.2).
# Bertinetto et al. 2018 report 58.9 and 71.5 for it on CIFAR-FS. The inner loss
# of the original code is a sum over the classes of the mean over shots. Its
# step size 0.01 is therefore 0.05 on the mean loss here.
MAML = {
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
# Snell et al. 2017, section 3.2, on miniImageNet: more ways in training than at
# test, and one episode in a step. They halve the step size every 2,000 steps.
# These presets use a cosine schedule instead.
PROTOTYPICAL = {
  "learner": "prototypical",
  "train_ways": 30,
  "query_shots": 15,
  "outer_lr": 1e-3,
  "outer_schedule": "cosine",
  "meta_batch": 1,
  "steps": 20_000,
}
FIVE_SHOT = {"shots": 5}
ROWS = {
  "maml_5w1s": MAML,
  "maml_5w5s": MAML | FIVE_SHOT | {"meta_batch": 2},
  "prototypical_5w1s": PROTOTYPICAL,
  "prototypical_5w5s": PROTOTYPICAL | FIVE_SHOT | {"train_ways": 20},
}
PRESETS = {
  f"{data}_{row}": {"data": data, **values}
  for data in ("cifar_fs", "fc100")
  for row, values in ROWS.items()
}
