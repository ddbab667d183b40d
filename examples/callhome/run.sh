#!/usr/bin/env bash
# Who spoke when: from recordings to scored diarizations by clustering, TS-VAD and EEND. `run.sh --help` explains the options.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
export PATH="$root/.venv/bin:$PATH"

corpus=demo data="" train="" bundle="" config="" name="" conversations=40 gpus=0 nj=2 stage="" stop_stage=8 workdir=$here
set_args=()
command="run.sh $*"

usage() {
  cat <<'TEXT'
usage: run.sh [options]
  --corpus NAME      demo (generated voices, the default), mini (librispeech-mini, ami-mini), callhome
  --data DIR         where the corpus lies; for mini $SPEAKERKIT_DATA or ../shared/data by default; for callhome the folder
                     with LDC2001S97, fullref.rttm, part1.txt and part2.txt at any depth, and musan and RIRS_NOISES if there
  --train DIR        callhome: Kaldi directory of telephone speech of single speakers, to train on
  --bundle DIR       take this embedding model instead of training one
  --config FILE      callhome: experiment that trains one, ../voxceleb/conf/resnet34.yaml by default
  --name NAME        names the folder exp/CORPUS-NAME, "clusters" by default
  --conversations N  to simulate and score on (demo, mini), 40 by default
  --set KEY=VALUE    override a value of conf/tsvad*.yaml and conf/eend*.yaml; may be given several times
  --stage N          begin at this stage, run before or not; without it finished stages are skipped
  --stop-stage N     end after this stage
  --gpus N           GPUs to train on (TS-VAD on one of them), 0 for the CPU
  --nj N             parallel jobs of preparation and extraction
  --workdir DIR      where data/ and exp/ are made, this folder by default
stages: 1 prepare  2 simulate conversations  3 embedding model  4 PLDA  5 tune and cluster  6 TS-VAD and EEND  7 score
        8 report
TEXT
}

last_stage=8
source "$root/tools/stages.sh"
read_options "corpus data train bundle config name conversations gpus nj stage stop-stage workdir" "$@"
require_stages "$gpus" "$nj" "$conversations"

case $corpus in
  demo) label="conversations of generated voices" sets=(simulated) rate=16000 size=_mini ;;
  mini)
    label="conversations of librispeech-mini, and ami-mini" sets=(simulated ami) rate=16000 size=_mini
    [ -n "$data" ] || data=${SPEAKERKIT_DATA:-$root/../shared/data} ;;
  callhome)
    label="CALLHOME" sets=(callhome part2) rate=8000 size=""
    [ -n "$data" ] || { echo "run.sh: --corpus callhome needs --data DIR with LDC2001S97, fullref.rttm, part1.txt, part2.txt" >&2; exit 2; }
    [ -n "$train" ] || { echo "run.sh: --corpus callhome needs --train DIR, a Kaldi directory of telephone speech" >&2; exit 2; } ;;
  *) echo "run.sh: unknown corpus $corpus; choose demo, mini or callhome" >&2; exit 2 ;;
esac
require_folders "$data" "$train" "$bundle"
[ -z "$data" ] || data=$(cd "$data" && pwd)
[ -z "$bundle" ] || bundle=$(cd "$bundle" && pwd)
[ -z "$bundle" ] || [ -f "$bundle/config.yaml" ] || { echo "run.sh: no embedding model in $bundle" >&2; exit 2; }
config=${config:-$here/../voxceleb/conf/resnet34.yaml}
[ -f "$config" ] || { echo "run.sh: no such configuration: $config" >&2; exit 2; }

mkdir -p "$workdir"
workdir=$(cd "$workdir" && pwd)
lists=$workdir/data/$corpus exp=$workdir/exp/$corpus-${name:-clusters}
tuning=${sets[0]} # the set that is tuned on, one part for the other
model=$bundle
if [ "$corpus" = callhome ]; then
  sources=$lists # of the speakers to train on: cohort, and calibration to validate on; noise.lmdb, rir.lmdb
  model=${model:-$exp/embedding/bundle}
else
  sources=$workdir/embedding/data/$corpus
  model=${model:-$workdir/embedding/exp/$corpus-mini/bundle}
fi
mkdir -p "$lists" "$exp"
device=cpu
[ "$gpus" -eq 0 ] || device=cuda
data_key="$corpus $data $train $conversations"
model_key="$data_key $bundle $(sha256sum <"$config" | cut -c1-16)"
network_key="$model_key $(cat "$here/conf/"*"$size.yaml" | sha256sum | cut -c1-16) ${set_args[*]-}"

stage_1() {
  if [ "$corpus" != callhome ]; then
    embedding_recipe 2
    [ "$corpus" != mini ] || prepare_ami
    return
  fi
  speakerkit data prepare callhome "$data" "$lists/callhome" --workers "$nj"
  speakerkit data check "$train"
  python3 "$root/tools/split_speakers.py" "$train" "$lists/cohort" "$lists/calibration" --every 20 --recordings 1000
  if [ -d "$data/musan" ]; then
    tolerate speakerkit data prepare musan "$data/musan" "$lists/noise" --workers "$nj"
    speakerkit data lmdb "$lists/noise/wav.scp" "$lists/noise.lmdb"
  fi
  if [ -d "$data/RIRS_NOISES" ]; then
    tolerate speakerkit data prepare rirs "$data/RIRS_NOISES" "$lists/rir" --subset simulated --workers "$nj"
    speakerkit data lmdb "$lists/rir/wav.scp" "$lists/rir.lmdb"
  fi
}

prepare_ami() {
  local file
  mkdir -p "$lists/ami"
  for file in "$data"/ami-mini/*.flac; do echo "$(basename "$file" .flac) $file"; done >"$lists/ami/wav.scp"
  cat "$data"/ami-mini/*.rttm >"$lists/ami/rttm"
}

speech_of() { # detector, wav.scp, file of turns to write
  local files
  mapfile -t files < <(cut -d' ' -f2- "$2")
  speakerkit vad "${files[@]}" --vad "$1" --format "${3##*.}" --out "$3"
}

# Of the voices that no model has heard. What is trained on is mixed in training, without end.
stage_2() {
  if [ "$corpus" = callhome ]; then
    echo "recordings are there to score on; conversations to train on are mixed in stage 6"
    return
  fi
  # Noise in the pauses of noisy voices must not count as speech; and not silero says what is, as silero is scored.
  speech_of energy "$sources/test/wav.scp" "$lists/test_speech.rttm"
  awk '{ printf "%s-%d %s %.3f %.3f\n", $2, NR, $2, $4, $4 + $5 }' "$lists/test_speech.rttm" >"$lists/test_segments"
  speakerkit data conversations "$sources/test" "$lists/simulated" --count "$conversations" --rate "$rate" \
    --segments "$lists/test_segments" --workers "$nj"
  local part
  for part in 1 2; do
    mkdir -p "$lists/simulated/part$part"
    awk "NR % 2 == $((part % 2))" "$lists/simulated/wav.scp" >"$lists/simulated/part$part/wav.scp"
    cp "$lists/simulated/rttm" "$lists/simulated/part$part/rttm"
  done
}

stage_3() {
  if [ -n "$bundle" ]; then
    echo "$bundle is taken"
    return
  fi
  if [ "$corpus" != callhome ]; then
    embedding_recipe 4
    return
  fi
  train_embedding "$config" "$exp/embedding" "$train" "$rate" "$sources"
}

stage_4() {
  tolerate speakerkit embed --model "$model" --scp "$sources/cohort/wav.scp" --out "$exp/cohort.scp" --overwrite \
    --threads "$nj" --device "$device"
  rm -f "$exp/plda.safetensors"
  speakerkit plda train "$exp/cohort.scp" "$sources/cohort/utt2spk" "$exp/plda.safetensors" ||
    echo "note: no PLDA with so few recordings: VBx is left out"
}

folder_of() { # set
  [ "$1" = part2 ] && echo "$lists/callhome/part2" || echo "$lists/$1"
}

stage_5() {
  local set part vad method methods=(ahc spectral nme-sc) plda=()
  rm -rf "$exp/turns" "$exp/tuned"
  [ ! -f "$exp/plda.safetensors" ] || { methods+=(vbx); plda=(--plda "$exp/plda.safetensors"); }
  for set in "${sets[@]}"; do
    mkdir -p "$exp/turns/$set"
    cp "$(folder_of "$set")/rttm" "$exp/turns/$set/reference.rttm"
  done
  for part in part1 part2; do
    python3 "$root/tools/tune_diarization.py" "$lists/$tuning/$part/wav.scp" "$exp/turns/$tuning/reference.rttm" \
      "$exp/tuned/$part" --model "$model" --methods "${methods[@]}" "${plda[@]}" --threads "$nj"
  done
  for set in "${sets[@]}"; do
    [ "$set" != part2 ] || continue
    find_speech "$set"
    for vad in oracle silero; do
      for method in "${methods[@]}"; do diarize "$set" "$vad" "$method" "$method"; done
    done
  done
}

# Where somebody speaks: as the reference says, and as silero hears. Trivial answers are one speaker in all of it, one from
# the beginning to the end of the recording, and nobody.
find_speech() { # set
  local folder=$exp/turns/$1
  speech_of silero "$lists/$1/wav.scp" "$folder/silero.json"
  speakerkit convert "$folder/silero.json" "$folder/silero-one_speaker.rttm"
  speakerkit convert "$folder/silero.json" "$folder/whole.uem"
  awk '{ $8 = "one"; print }' "$folder/reference.rttm" >"$folder/oracle-one_speaker.rttm"
  awk '{ print "SPEAKER", $1, 1, $3, $4 - $3, "<NA> <NA> one <NA> <NA>" }' "$folder/whole.uem" >"$folder/none-one_speaker.rttm"
  : >"$folder/none-silence.rttm"
}

# Turns of all recordings of a set in one file: its parts with what was tuned on the other part, or all with what was tuned
# on the first part of another set.
diarize() { # set, speech, name of the system, whose tuned options ("" for none), further options
  local set=$1 vad=$2 system=$3 tuned=$4 parts=(part1 part2) part other options speech folder list
  shift 4
  folder=$exp/turns/$set/$vad-$system list=$(folder_of "$set")
  speech=$exp/turns/$set/silero.json
  [ "$vad" != oracle ] || speech=$exp/turns/$set/reference.rttm
  [ -d "$list/part1" ] || parts=(.)
  rm -rf "$folder"
  for part in "${parts[@]}"; do
    [ "$part" = part1 ] && other=part2 || other=part1
    options=()
    [ -z "$tuned" ] || mapfile -t options <"$exp/tuned/$other/$tuned"
    speakerkit diarize "$list/$part/wav.scp" --model "$model" --vad-rttm "$speech" --out "$folder/$part" \
      --threads "$nj" --device "$device" ${options[@]+"${options[@]}"} "$@"
  done
  find "$folder" -name '*.rttm' -print0 | sort -z | xargs -0 cat >"$folder.rttm"
}

stage_6() {
  local set vad
  local valid=(--set "data.valid=$(quoted "$sources/calibration")")
  train_network tsvad "$sources/cohort" --set "embedder=$(quoted "$model")" "${valid[@]}"
  train_network eend "$sources/cohort" --set "frontend.sample_rate=$rate" "${valid[@]}"
  for set in "${sets[@]}"; do
    [ "$set" != part2 ] || continue
    for vad in oracle silero; do
      diarize "$set" "$vad" best+tsvad best --refine "$exp/tsvad/bundle"
      diarize "$set" "$vad" eend "" --model-eend "$exp/eend/bundle"
    done
  done
  [ "$corpus" != callhome ] || adapt
}

train_network() { # name, Kaldi directory to train on, further options
  local kind=${1%_adapted} folder=$exp/$1 data=$2 ranks=$gpus
  shift 2
  [ "$kind" != tsvad ] || ranks=1 # several cannot leave the encoder out of the first steps only
  training_options "$ranks" "$sources" noise rir
  speakerkit train "$here/conf/$kind$size.yaml" --set "exp_dir=$(quoted "$folder")" --set "data.train=$(quoted "$data")" \
    "${given[@]}" "$@" ${set_args[@]+"${set_args[@]}"}
  speakerkit average "$folder"
}

# To part 1, as published: what is adapted can be scored on part 2 only.
adapt() {
  local vad part1=$lists/callhome/part1
  local short=(--set optim.lr=1e-5 --set schedule.warmup_steps=0 --set trainer.steps=2000)
  train_network tsvad_adapted "$part1" --set "embedder=$(quoted "$model")" --set "init=$(quoted "$exp/tsvad/bundle")" \
    --set frozen_steps=0 "${short[@]}"
  train_network eend_adapted "$part1" --set "frontend.sample_rate=$rate" --set "init=$(quoted "$exp/eend/bundle")" "${short[@]}"
  cp "$exp/turns/callhome/silero.json" "$exp/turns/part2/"
  for vad in oracle silero; do
    diarize part2 "$vad" best+tsvad_adapted best --refine "$exp/tsvad_adapted/bundle"
    diarize part2 "$vad" eend_adapted "" --model-eend "$exp/eend_adapted/bundle"
  done
}

stage_7() {
  local set folders turns
  rm -rf "$exp/scores"
  for set in "${sets[@]}"; do
    mkdir -p "$exp/scores/$set"
    folders=("$exp/turns/$set")
    [ "$set" != part2 ] || folders+=("$exp/turns/callhome") # what was not adapted is for all recordings
    find "${folders[@]}" -maxdepth 1 -name '*-*.rttm' | sort >"$exp/scores/$set.list"
    while IFS= read -r turns; do score "$set" "$turns"; done <"$exp/scores/$set.list"
  done
}

score() { # set, turns; of recordings in which nobody is found there are no lines, and other sets may be in them
  speakerkit score der "$exp/turns/$1/reference.rttm" "$2" --collar 0.25 --median 11 --missing-as-silence --json \
    >"$exp/scores/$1/$(basename "$2" .rttm).json" 2>"$exp/scores/$1/$(basename "$2" .rttm).log" ||
    { cat "$exp/scores/$1/$(basename "$2" .rttm).log" >&2; return 2; }
}

stage_8() {
  local set tables=() worst
  for set in "${sets[@]}"; do tables+=(--set "$set" "$(folder_of "$set")/wav.scp"); done
  python3 "$root/tools/diarization_results.py" "$exp" --label "$label" --command "$command" "${tables[@]}" \
    --revision "$(git -C "$root" describe --always --dirty 2>/dev/null || echo unknown)"
  mapfile -t worst <"$exp/worst" # recording, audio, system
  speakerkit report diarization "$exp/turns/$tuning/${worst[2]}.rttm" --recording "${worst[0]}" --audio "${worst[1]}" --embed-audio \
    --title-label "$label: ${worst[0]} by ${worst[2]}, the worst" --out "$exp/report.html"
}

main() { # one function, so that bash has read all of this file before it runs for hours
  run_stage 1 prepare "$lists" "$data_key"
  run_stage 2 simulate "$lists" "$data_key"
  run_stage 3 "embedding model" "$exp" "$model_key"
  run_stage 4 PLDA "$exp" "$model_key"
  run_stage 5 "tune and cluster" "$exp" "$model_key"
  run_stage 6 "TS-VAD and EEND" "$exp" "$network_key"
  run_stage 7 score "$exp" "$network_key"
  run_stage 8 report "$exp" "$network_key"
  current=""

  if [ "$stop_stage" -ge 8 ]; then
    echo
    cat "$exp/results.txt"
    echo
    echo "report:    $exp/report.html (the recording with the highest error rate)"
    echo "try next:  speakerkit diarize --model $model A.wav"
  fi
}

main; exit
