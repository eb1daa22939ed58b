"""Task families: pure functions from a key to an episode."""

from metajax.tasks.cifar100 import cifar_fs, fc100
from metajax.tasks.class_batches import class_batches
from metajax.tasks.conjugate import coin_flips, normal_gamma, normal_means
from metajax.tasks.features import encoded
from metajax.tasks.few_shot import few_shot_episodes, labelled_episodes
from metajax.tasks.gaussian_processes import gaussian_processes, tnp_processes
from metajax.tasks.host import host_tasks
from metajax.tasks.image_completion import image_completion
from metajax.tasks.image_folder import image_folder
from metajax.tasks.known import exact_learner, revealed
from metajax.tasks.linear_regression import linear_regression
from metajax.tasks.meta_dataset import meta_dataset_episodes
from metajax.tasks.mixture import mixture
from metajax.tasks.omniglot import omniglot
from metajax.tasks.sawtooth import sawtooth
from metajax.tasks.sinusoid import sinusoid
from metajax.tasks.standardized import standardized
from metajax.tasks.stored_images import StoredImages
from metajax.tasks.streamed import streamed_episodes

__all__ = [
  "StoredImages",
  "cifar_fs",
  "class_batches",
  "encoded",
  "fc100",
  "coin_flips",
  "exact_learner",
  "few_shot_episodes",
  "gaussian_processes",
  "host_tasks",
  "image_completion",
  "image_folder",
  "labelled_episodes",
  "linear_regression",
  "meta_dataset_episodes",
  "mixture",
  "normal_gamma",
  "normal_means",
  "omniglot",
  "revealed",
  "sawtooth",
  "sinusoid",
  "standardized",
  "streamed_episodes",
  "tnp_processes",
]
