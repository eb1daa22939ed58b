"""Task families: pure functions from a key to an episode."""

from metajax.tasks.cifar100 import cifar_fs, fc100
from metajax.tasks.class_batches import class_batches
from metajax.tasks.few_shot import few_shot_episodes, labelled_episodes
from metajax.tasks.image_folder import image_folder
from metajax.tasks.meta_dataset import meta_dataset_episodes
from metajax.tasks.mixture import mixture
from metajax.tasks.omniglot import omniglot
from metajax.tasks.sinusoid import sinusoid
from metajax.tasks.standardized import standardized
from metajax.tasks.stored_images import StoredImages
from metajax.tasks.streamed import streamed_episodes

__all__ = [
  "StoredImages",
  "cifar_fs",
  "class_batches",
  "fc100",
  "few_shot_episodes",
  "image_folder",
  "labelled_episodes",
  "meta_dataset_episodes",
  "mixture",
  "omniglot",
  "sinusoid",
  "standardized",
  "streamed_episodes",
]
