# What recipes share, for them to source: options, stages that are skipped where they are done, and how a failure is told.
# They set stage, stop_stage and last_stage, and the folders lists and exp, in which the marks lie.

# Into variables of their names: --stop-stage 3 sets stop_stage. Each --set adds to set_args.
read_options() { # names of the options that have a value, the command line
  local known=" $1 set " option
  shift
  while [ $# -gt 0 ]; do
    case $1 in -h | --help) usage; exit 0 ;; esac
    option=${1#--}
    [[ $1 =~ ^--[a-z-]+$ && $known == *" $option "* ]] || { echo "run.sh: unknown option $1; see run.sh --help" >&2; exit 2; }
    [ $# -ge 2 ] || { echo "run.sh: $1 needs a value" >&2; exit 2; }
    if [ "$option" = set ]; then set_args+=(--set "$2"); else printf -v "${option//-/_}" %s "$2"; fi
    shift 2
  done
}

require_folders() { # some of them empty, for none
  local folder
  for folder in "$@"; do
    [ -z "$folder" ] || [ -d "$folder" ] || { echo "run.sh: no such folder: $folder" >&2; exit 2; }
  done
}

require_stages() { # further options that are numbers; and that there is a speakerkit to run them
  local number
  for number in "$@" "${stage:-1}" "$stop_stage"; do
    [[ $number =~ ^[0-9]+$ ]] || { echo "run.sh: $number is not a number; see run.sh --help" >&2; exit 2; }
  done
  [ "${stage:-1}" -ge 1 ] && [ "${stage:-1}" -le "$stop_stage" ] && [ "$stop_stage" -le "$last_stage" ] ||
    { echo "run.sh: stages run from 1 to $last_stage, and --stop-stage is not before --stage" >&2; exit 2; }
  command -v speakerkit >/dev/null || { echo "run.sh: speakerkit is not installed; run 'make demo' in $root" >&2; exit 2; }
}

# A finished stage leaves a mark that holds what it depended on; another corpus, folder or configuration voids it, and a
# stage that runs again voids the marks of those after it.
run_stage() { # number, name, folder of the mark, what it depends on
  local mark=$3/.stage$1.done
  if [ "$1" -lt "${stage:-1}" ] || [ "$1" -gt "$stop_stage" ]; then return; fi
  if [ -z "$stage" ] && [ -f "$mark" ] && [ "$(cat "$mark")" = "$4" ]; then
    echo "stage $1 ($2): done before, skipped (--stage $1 runs it again)"
    return
  fi
  echo "stage $1 ($2)"
  local later
  for later in $(seq "$1" "$last_stage"); do rm -f "$lists/.stage$later.done" "$exp/.stage$later.done"; done
  current="$1 ($2)"
  "stage_$1"
  printf %s "$4" >"$mark"
}
trap 'status=$?; [ $status -eq 0 ] || [ -z "${current-}" ] || echo "run.sh: stage $current failed with status $status; the reason stands above. Mend it and go on with the same command and --stage ${current%% *}" >&2' EXIT

# Exit code 3 says that a part failed and is named in failed.tsv: a few bad files must not end a corpus of a million. Test
# sets are not tolerated to shrink.
tolerate() { "$@" || [ $? -eq 3 ]; }

quoted() { printf "'%s'" "${1//\'/\'\'}"; } # a path as YAML text

# The corpora of voices, and the model of a demo or mini run, are those of the embedding recipe.
embedding_recipe() { # its last stage
  bash "$root/examples/voxceleb/run.sh" --corpus "$corpus" ${data:+--data "$data"} --gpus "$gpus" --nj "$nj" \
    --workdir "$workdir/embedding" --stop-stage "$1"
}

# Into `given`: the device, and stores of noises and room responses where there are such.
training_options() { # ranks at most, folder of the stores, their names
  local ranks=$1 folder=$2 store
  shift 2
  given=(--set "trainer.device=$device")
  [ "$gpus" -le 1 ] || given+=(--nproc "$ranks")
  for store in "$@"; do
    [ ! -d "$folder/$store.lmdb" ] || given+=(--set "data.$store=$(quoted "$folder/$store.lmdb")")
  done
}

# An embedding model in FOLDER/bundle.
train_embedding() { # configuration, folder, Kaldi directory to train on, rate, folder of the stores
  local config=$1 folder=$2 given
  speakerkit data holdout "$3" "$folder"
  training_options "$gpus" "$5" noise rir
  [ -d "$5/noise.lmdb" ] && [ -d "$5/rir.lmdb" ] || given+=(--set "data.augment=[]")
  speakerkit train "$config" --set "exp_dir=$(quoted "$folder")" --set "frontend.sample_rate=$4" \
    --set "data.train=$(quoted "$folder/train.list")" --set data.format=raw "${given[@]}"
  speakerkit average "$folder"
}
