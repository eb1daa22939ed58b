#!/usr/bin/env bash
# The table of learners in docs/results.md on Omniglot, each row a command.
#
#   scripts/reproduce.sh                      # all rows
#   scripts/reproduce.sh maml_5w1s anil_5w1s  # some
#   MINUTES=30 scripts/reproduce.sh maml_plus_plus_5w1s
#
# A row trains as many meta-steps as one CPU core takes in about MINUTES (12), so
# rows can run beside each other, a core each (taskset -c 0 ...). One that was
# interrupted goes on, one that is done is read. At the end comes the table of
# all rows in OUT (runs/reproduce). Data: $METAJAX_DATA_DIR.
set -euo pipefail
minutes=${MINUTES:-12}
out=${OUT:-runs/reproduce}

# Name, meta-steps in a minute on a core, flags. Step sizes were chosen on
# validation (docs/results.md).
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

chosen=("$@")
for name in "${chosen[@]}"; do
  if [[ ! " ${rows[*]%% *} " == *" $name "* ]]; then
    echo "error: no row $name; rows are: ${rows[*]%% *}" >&2
    exit 2
  fi
done

source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
environment
for row in "${rows[@]}"; do
  read -r name rate flags <<< "$row"
  if ((${#chosen[@]})) && [[ ! " ${chosen[*]} " == *" $name "* ]]; then
    continue
  fi
  steps=$((minutes * rate))
  workdir=$out/${name}_$steps
  if [[ -f $workdir.flags && $(< "$workdir.flags") != "$flags" ]]; then
    echo "error: $workdir was made with other flags, see $workdir.flags: move it away" >&2
    exit 2
  fi
  if [[ -f $workdir.flags && -f $workdir/results.json ]]; then continue; fi
  echo "== $name: $steps meta-steps"
  mkdir -p "$out" && echo "$flags" > "$workdir.flags"
  # shellcheck disable=SC2086 # Flags are several words.
  python -m experiments.few_shot --workdir="$workdir" $flags \
    --steps=$steps --outer_schedule=cosine --eval_every=$((steps / 8 + 1)) \
    --log_every=$((steps / 40 + 1)) --checkpoint_every=$((steps / 8 + 1))
done
python -m metajax.results_table "$out"/*/results.json
