"""The flags of the sizes of few-shot tasks."""

from absl import flags

from metajax.runs.flags import define_numbers

flags.DEFINE_integer("ways", 5, "Classes per task.", lower_bound=2)
flags.DEFINE_integer(
  "train_ways",
  0,
  "Classes per task in training, for learners that take any number "
  "(prototypical, cosine, svm and ridge); 0: as many as at test.",
  lower_bound=0,
)
flags.register_validator(
  "train_ways", lambda ways: ways != 1, "must be 0, or 2 or more"
)
flags.DEFINE_integer("shots", 1, "Support images per class.", lower_bound=1)
define_numbers(
  "train_shots",
  0,
  "Support images per class in training. 1,9: each task draws a number from 1 "
  "to 9. 0: as many as at test.",
  lower_bound=0,
)
flags.register_validator(
  "train_shots",
  lambda shots: isinstance(shots, int) or len(shots) == 2,
  "must be a number, or the lowest and the highest one",
)
flags.DEFINE_integer(
  "query_shots",
  0,
  "Query images per class; 0: as many as shots, like the original code.",
  lower_bound=0,
)
flags.DEFINE_integer(
  "eval_query_shots",
  0,
  "Query images per class in validation and test; 0: as in training.",
  lower_bound=0,
)
