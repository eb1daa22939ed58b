"""Published protocols of few-shot Omniglot, as flags of `few_shot`."""

# The inner loss of the original code is a sum over the classes of the mean over
# shots. Its step sizes 0.4 (5-way) and 0.1 (20-way) are therefore 2.0 on the
# mean loss here.
PAPER = {
  "inner_lr": 2.0,
  "outer_lr": 1e-3,
  "steps": 40_000,
  "meta_batch": 32,
  "outer_schedule": "constant",
}
PAPER_20_WAY = PAPER | {
  "ways": 20,
  "meta_batch": 16,
  "inner_steps": 5,
  "eval_inner_steps": 5,
}
# Nichol et al. 2018, appendix A: 10 shots in training. At test 1 shot and 1
# query.
REPTILE = {
  "learner": "reptile",
  "query_shots": 9,
  "eval_query_shots": 1,
  "inner_optimizer": "adam",
  "inner_lr": 1e-3,
  "inner_steps": 5,
  "inner_batch": 10,
  "eval_inner_steps": 50,
  "outer_optimizer": "sgd",
  "outer_lr": 1.0,
  "outer_schedule": "linear",
  "meta_batch": 5,
  "steps": 100_000,
}
# Antoniou et al. 2019 with all parts of MAML++. The network and the split are
# those of the other presets. The initial inner step size is larger than their
# 0.1.
PLUS_PLUS = {
  "learner": "maml_plus_plus",
  "inner_lr": 0.5,
  "outer_schedule": "cosine",
  "inner_steps": 5,
  "eval_inner_steps": 5,
}
PRESETS = {
  "5w1s": PAPER,
  "5w5s": PAPER | {"shots": 5},
  "20w1s": PAPER_20_WAY,
  "20w5s": PAPER_20_WAY | {"shots": 5},
  "5w1s_mlp": PAPER | {"model": "mlp"},
  "5w5s_mlp": PAPER | {"model": "mlp", "shots": 5},
  "reptile": REPTILE,
  "maml_plus_plus": PLUS_PLUS,
}
