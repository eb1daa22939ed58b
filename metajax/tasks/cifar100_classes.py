"""The classes of CIFAR-100, and their splits in CIFAR-FS and FC100.

The lists are the published ones, as in pytorch-meta (torchmeta),
assets/cifar100.

References:
  Krizhevsky, `Learning Multiple Layers of Features from Tiny Images
  <https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf>`_, 2009.
  Bertinetto et al., `Meta-learning with differentiable closed-form solvers
  <https://arxiv.org/abs/1805.08136>`_, 2018, for CIFAR-FS.
  Oreshkin et al., `TADAM: Task dependent adaptive metric for improved few-shot
  learning <https://arxiv.org/abs/1805.10123>`_, 2018, for FC100.
"""

# Superclass -> its five classes, both in the order of their labels.
SUPERCLASSES = {
  "aquatic_mammals": "beaver dolphin otter seal whale",
  "fish": "aquarium_fish flatfish ray shark trout",
  "flowers": "orchid poppy rose sunflower tulip",
  "food_containers": "bottle bowl can cup plate",
  "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
  "household_electrical_devices": "clock keyboard lamp telephone television",
  "household_furniture": "bed chair couch table wardrobe",
  "insects": "bee beetle butterfly caterpillar cockroach",
  "large_carnivores": "bear leopard lion tiger wolf",
  "large_man-made_outdoor_things": "bridge castle house road skyscraper",
  "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
  "large_omnivores_and_herbivores": (
    "camel cattle chimpanzee elephant kangaroo"
  ),
  "medium_mammals": "fox porcupine possum raccoon skunk",
  "non-insect_invertebrates": "crab lobster snail spider worm",
  "people": "baby boy girl man woman",
  "reptiles": "crocodile dinosaur lizard snake turtle",
  "small_mammals": "hamster mouse rabbit shrew squirrel",
  "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
  "vehicles_1": "bicycle bus motorcycle pickup_truck train",
  "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
# 64, 16 and 20 classes.
CIFAR_FS = {
  "train": (
    "dolphin seal aquarium_fish ray trout orchid sunflower tulip bottle "
    "bowl can cup plate apple mushroom orange pear clock keyboard chair "
    "couch bee caterpillar cockroach bear lion tiger wolf bridge castle "
    "house road skyscraper cloud forest mountain elephant kangaroo "
    "porcupine possum raccoon skunk lobster spider boy girl dinosaur lizard "
    "snake turtle hamster mouse rabbit shrew squirrel oak_tree palm_tree "
    "pine_tree willow_tree bus train lawn_mower streetcar tank"
  ),
  "validation": (
    "beaver otter flatfish shark lamp television beetle butterfly sea camel "
    "cattle crab crocodile maple_tree motorcycle tractor"
  ),
  "test": (
    "whale poppy rose sweet_pepper telephone bed table wardrobe leopard "
    "plain chimpanzee fox snail worm baby man woman bicycle pickup_truck "
    "rocket"
  ),
}
# 12, 4 and 4 superclasses, that is 60, 20 and 20 classes.
FC100 = {
  "train": (
    "fish flowers food_containers fruit_and_vegetables "
    "household_electrical_devices household_furniture "
    "large_man-made_outdoor_things large_natural_outdoor_scenes reptiles "
    "trees vehicles_1 vehicles_2"
  ),
  "validation": (
    "large_carnivores large_omnivores_and_herbivores "
    "non-insect_invertebrates small_mammals"
  ),
  "test": "aquatic_mammals insects medium_mammals people",
}


def fine_names() -> list[str]:
  """Returns the 100 classes in the order of their labels."""
  return sorted(" ".join(SUPERCLASSES.values()).split())


def superclass_labels() -> list[int]:
  """Returns the superclass of each class, by label."""
  of = {
    name: label
    for label, names in enumerate(SUPERCLASSES.values())
    for name in names.split()
  }
  return [of[name] for name in fine_names()]


def split_classes(name: str) -> list[list[int]]:
  """Returns the labels of the classes for training, validation and test.

  Args:
    name: "cifar_fs" or "fc100".
  """
  labels = {name: label for label, name in enumerate(fine_names())}
  if name == "cifar_fs":
    parts = [names.split() for names in CIFAR_FS.values()]
  else:
    parts = [
      " ".join(SUPERCLASSES[group] for group in groups.split()).split()
      for groups in FC100.values()
    ]
  return [sorted(labels[name] for name in names) for names in parts]
