"""The network of `few_shot`, and the flags of each kind of network."""

from typing import Any, get_args

from absl import flags

from experiments.shared.image_sets import name_of_data
from metajax.models.conv import ConvLowering
from metajax.models.normalization import BY_BATCH, NORMALIZATIONS, statistics
from metajax.runs import learner_options
from metajax.runs.flags import FLAGS, define_numbers, refuse

flags.DEFINE_enum(
  "model",
  "conv4",
  ["conv4", "mlp", "resnet12"],
  "Network: four convolutions, dense layers, or ResNet-12.",
)
define_numbers(
  "filters",
  64,
  "Channels of each block of conv4, or four numbers such as 96,192,384,512.",
  lower_bound=1,
)
flags.DEFINE_float(
  "slope",
  0.0,
  "Slope of conv4's ReLU below zero.",
  lower_bound=0.0,
  upper_bound=1.0,
)
flags.DEFINE_integer(
  "joined_blocks",
  1,
  "The features of conv4 are the outputs of so many last blocks.",
  lower_bound=1,
  upper_bound=4,
)
flags.DEFINE_float(
  "late_drop_rate",
  0.0,
  "Share of numbers that dropout sets to zero in training, after the last two "
  "blocks of conv4.",
  lower_bound=0.0,
  upper_bound=0.99,
)
flags.DEFINE_enum(
  "widths",
  "640",
  ["640", "512"],
  "Channels of resnet12's blocks. 640: 64, 160, 320, 640 (12.4 million "
  "parameters). 512: 64, 128, 256, 512 (8 million).",
)
flags.DEFINE_float(
  "drop_rate",
  0.1,
  "Share of numbers that dropout and DropBlock of resnet12 set to zero in "
  "training.",
  lower_bound=0.0,
  upper_bound=0.99,
)
flags.DEFINE_bool(
  "pooled",
  True,
  "The features of resnet12 are the means over positions; if false, those of "
  "all positions.",
)
flags.DEFINE_enum(
  "downsampling",
  "auto",
  ["auto", "stride", "max_pool"],
  "How conv4 halves its maps. stride: by convolutions of stride 2; the head "
  "reads the mean over positions. max_pool: by max-pooling; the head reads all "
  "positions. auto: stride for Omniglot and folders, max_pool for the others.",
)
flags.DEFINE_enum(
  "normalization",
  "batch",
  sorted(NORMALIZATIONS),
  "Normalisation in every layer. batch: by the statistics of the images given, "
  "so at test the queries of a task see each other (transductive). running: at "
  "test by running averages of the statistics of training. group and layer: "
  "within each image.",
)
flags.DEFINE_enum(
  "conv_lowering",
  "auto",
  get_args(ConvLowering),
  "How convolutions are computed. patches: as products of patches. blocks: the "
  "same for blocks of images. xla: by XLA's convolution. auto: blocks on CPUs, "
  "xla on TPUs, else patches.",
)
# Flags that only some networks have.
OWN = {
  "conv4": (
    "filters",
    "slope",
    "joined_blocks",
    "late_drop_rate",
    "downsampling",
    "conv_lowering",
  ),
  "resnet12": ("widths", "drop_rate", "pooled", "conv_lowering"),
  "mlp": (),
}
WIDTHS = {"640": [64, 160, 320, 640], "512": [64, 128, 256, 512]}


def network(learner: str) -> dict[str, Any]:
  """Returns the network's description, see `metajax.recipes.Recipe.model`.

  Raises:
    ValueError: if a flag belongs to another network, or does not fit the
      learner.
  """
  for name, own in OWN.items():
    if name != FLAGS.model:
      refuse(*(flag for flag in own if flag not in OWN[FLAGS.model]))
  described = {"name": FLAGS.model, "normalization": FLAGS.normalization}
  if FLAGS.model == "conv4":
    late = FLAGS.late_drop_rate
    return described | {
      "filters": FLAGS.filters,
      "strided": _downsampling() == "stride",
      "conv_lowering": FLAGS.conv_lowering,
      "num_context": learner_options.num_context(learner),
      "slope": FLAGS.slope,
      "joined_blocks": FLAGS.joined_blocks,
      "drop_rates": 2 * [0.0] + 2 * [late] if late else [],
    }
  if learner == "cavia" and FLAGS.model == "resnet12":
    raise ValueError(
      "--model=resnet12: takes no context, which cavia adapts; give "
      "--model=conv4, or another learner."
    )
  if FLAGS.model == "resnet12":
    return described | {
      "filters": WIDTHS[FLAGS.widths],
      "drop_rate": FLAGS.drop_rate,
      "pooled": FLAGS.pooled,
      # The values of MetaOptNet's code for images of 84 and of 32 pixels.
      "block_size": 5 if name_of_data() in ("mini_imagenet", "folder") else 2,
      "conv_lowering": FLAGS.conv_lowering,
    }
  if learner == "cavia" and FLAGS.normalization in BY_BATCH:
    raise ValueError(
      f"--normalization={FLAGS.normalization}: takes away what the context "
      "of cavia adds in an mlp; give --normalization=layer, or --model=conv4."
    )
  return described | {"hidden": [256, 128, 64, 64]}


def protocol() -> dict[str, Any]:
  """Returns the entries of the network in `results.json`."""
  values = {
    flag: FLAGS[flag].value if flag in OWN[FLAGS.model] else None
    for own in OWN.values()
    for flag in own
  }
  if FLAGS.model == "conv4":
    values["downsampling"] = _downsampling()
  return {
    "model": FLAGS.model,
    **values,
    "normalization": FLAGS.normalization,
    "transductive": FLAGS.normalization == "batch",
    "statistics": statistics(FLAGS.normalization),
  }


def _downsampling() -> str:
  if FLAGS.downsampling != "auto":
    return FLAGS.downsampling
  return "stride" if name_of_data() in ("omniglot", "folder") else "max_pool"
