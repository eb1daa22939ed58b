#!/usr/bin/env bash
# The tables of docs/results_images.md on few-shot images, each row a command.
#
#   scripts/reproduce.sh                      # all rows of minutes
#   scripts/reproduce.sh maml_5w1s anil_5w1s  # some
#   MINUTES=30 scripts/reproduce.sh maml_plus_plus_5w1s
#   scripts/reproduce.sh cifar_fs_maml_5w1s   # a whole published training
#
# A row of minutes trains on Omniglot as many meta-steps as one CPU core takes in
# about MINUTES (12), so rows can run beside each other, a core each (taskset -c 0
# ...). Whole trainings take hours and run if they are named. One that was
# interrupted goes on, one that is done is read. At the end come the tables of all
# rows in OUT (runs/reproduce). Data: $METAJAX_DATA_DIR, which may hold both
# Omniglot and CIFAR-100. A whole training is left in OUT/whole/NAME, from where
# metajax.load("OUT/whole/NAME") loads it.
set -euo pipefail
minutes=${MINUTES:-12}
out=${OUT:-runs/reproduce}

# Name, meta-steps in a minute on a core, flags. Step sizes were chosen on
# validation (docs/results_images.md).
plus_plus="--preset=maml_plus_plus --inner_steps=1 --eval_inner_steps=1 --inner_lr=0.4"
head="--inner_lr=5 --outer_lr=0.03"
implicit="--inner_lr=1 --proximal_strength=0.1 --damping=1"
five_steps="--inner_steps=5 --eval_inner_steps=5"
slow="--outer_lr=0.001"
encoder="$slow --meta_batch=2 --query_shots=5 --eval_query_shots=1"
rows=(
  "maml_5w1s 1400 --learner=maml"
  "fomaml_5w1s 3300 --learner=fomaml"
  "anil_5w1s 2900 --learner=anil $head"
  "boil_5w1s 1400 --learner=boil"
  "meta_sgd_5w1s 1200 --learner=meta_sgd"
  "maml_plus_plus_5w1s 1600 $plus_plus"
  "cavia_5w1s 1650 --learner=cavia --inner_lr=2 --num_context=100"
  "imaml_5w1s 310 --learner=imaml --inner_steps=16 --eval_inner_steps=16 $implicit"
  "reptile_5w1s 550 --preset=reptile"
  "bmg_5w1s 1050 --learner=bmg"
  "prototypical_5w1s 690 --learner=prototypical --train_ways=20 $encoder"
  "ridge_5w1s 650 --learner=ridge --train_ways=20 $encoder"
  "recurrent_5w1s 2800 --learner=recurrent $slow"
  "maml_20w1s 690 --ways=20 --meta_batch=4"
  "maml_plus_plus_20w1s 750 $plus_plus --ways=20 --meta_batch=4"
  "anil_20w1s 600 --ways=20 --meta_batch=4 --learner=anil $head $five_steps"
  "prototypical_20w1s 690 --learner=prototypical --ways=20 $encoder"
)

# Name, experiment, flags of whole published trainings. Those of resnet12 need a
# GPU. Trainings whose shots do not depend on the test are tested with 1 and 5.
of_snell="--learner=prototypical --ways=20 --train_ways=60 --query_shots=5"
of_snell+=" --downsampling=max_pool --outer_lr=0.001 --meta_batch=1 --steps=20000"
of_lee="--learner=prototypical --query_shots=15"
any_shots="--pictures=all"
whole=(
  "omniglot_maml_20w1s few_shot --preset=20w1s"
  "omniglot_prototypical_20w1s few_shot $of_snell"
  "omniglot_reptile_5w1s few_shot --preset=reptile"
)
for data in cifar_fs fc100; do
  for shots in 1 5; do
    for row in maml boil prototypical; do
      name=${data}_${row}_5w${shots}s
      whole+=("$name few_shot --preset=$name")
    done
    whole+=(
      "${data}_prototypical_resnet12_5w${shots}s few_shot --preset=${data}_svm_5w${shots}s $of_lee --train_shots=$shots"
    )
  done
  whole+=(
    "${data}_ridge few_shot --preset=${data}_ridge_5w1s $any_shots"
    "${data}_ridge_wide few_shot --preset=${data}_ridge_wide_5w1s $any_shots"
    "${data}_svm few_shot --preset=${data}_svm_5w1s $any_shots"
    "${data}_rfs_simple pretrain --preset=${data}_rfs_1s $any_shots"
    "${data}_rfs_distill pretrain --preset=${data}_rfs_1s --generations=1 $any_shots"
    "${data}_rfs_distill_resnet12 pretrain --preset=${data}_rfs_1s --generations=1 --model=resnet12 $any_shots"
    "${data}_meta_baseline few_shot --preset=${data}_meta_baseline_5w1s --init_from=$out/whole/${data}_rfs_simple $any_shots"
  )
done

names="${rows[*]%% *} ${whole[*]%% *}"
chosen=("$@")
for name in "${chosen[@]}"; do
  if [[ ! " $names " == *" $name "* ]]; then
    echo "error: no row $name; rows are: $names" >&2
    exit 2
  fi
done

# train EXPERIMENT WORKDIR FLAGS [MORE FLAGS]: trains, unless it is done.
train() {
  local experiment=$1 workdir=$2 flags=$3
  shift 3
  if [[ -f $workdir.flags && $(< "$workdir.flags") != "$flags" ]]; then
    echo "error: $workdir was made with other flags, see $workdir.flags: move it away" >&2
    exit 2
  fi
  if [[ -f $workdir.flags && -f $workdir/results.json ]]; then return; fi
  echo "== $(basename "$workdir")"
  mkdir -p "$(dirname "$workdir")" && echo "$flags" > "$workdir.flags"
  # shellcheck disable=SC2086 # Flags are several words.
  python -m "experiments.$experiment" --workdir="$workdir" $flags "$@"
}

source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
environment
for row in "${rows[@]}"; do
  read -r name rate flags <<< "$row"
  if ((${#chosen[@]})) && [[ ! " ${chosen[*]} " == *" $name "* ]]; then
    continue
  fi
  steps=$((minutes * rate))
  train few_shot "$out/${name}_$steps" "$flags" \
    --steps=$steps --outer_schedule=cosine --eval_every=$((steps / 8 + 1)) \
    --log_every=$((steps / 40 + 1)) --checkpoint_every=$((steps / 8 + 1))
done
for row in "${whole[@]}"; do
  read -r name experiment flags <<< "$row"
  if [[ " ${chosen[*]} " == *" $name "* ]]; then
    train "$experiment" "$out/whole/$name" "$flags"
  fi
done
made=("$out"/*/results.json)
if [[ -f ${made[0]} ]]; then python -m metajax.results_table "${made[@]}"; fi
made=("$out"/whole/*/results.json)
if [[ -f ${made[0]} ]]; then python scripts/whole_table.py "${made[@]}"; fi
