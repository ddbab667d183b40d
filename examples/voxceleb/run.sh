#!/usr/bin/env bash
# Speaker embeddings from recordings to a scored and exported model. `run.sh --help` explains the options.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
export PATH="$root/.venv/bin:$PATH"

corpus=demo data="" config="" name="" dev="" gpus=0 nj=2 stage="" stop_stage=10 workdir=$here
set_args=()

usage() {
  cat <<'TEXT'
usage: run.sh [options]
  --corpus NAME    demo (generated, the default), mini (librispeech-mini), voxceleb
  --data DIR       where the corpus lies; for mini $SPEAKERKIT_DATA or ../shared/data by default
  --config FILE    experiment, conf/mini.yaml by default (conf/resnet34.yaml for voxceleb)
  --name NAME      names the folder exp/CORPUS-NAME, the configuration's name by default
  --dev DIR        Kaldi directory of further speakers recorded like the test: half of them to calibrate on, half, without
                   labels, to adapt PLDA to; without it one training speaker in five calibrates. demo makes its own
  --set KEY=VALUE  override a value of the configuration; may be given several times
  --stage N        begin at this stage, run before or not; without it finished stages are skipped
  --stop-stage N   end after this stage
  --gpus N         GPUs to train on, 0 for the CPU
  --nj N           parallel jobs of preparation and extraction
  --workdir DIR    where data/ and exp/ are made, this folder by default
stages: 1 prepare  2 lists, shards, noise stores  3 train  4 average, extract  5 cosine  6 AS-norm  7 PLDA
        8 calibration and quality measures  9 report  10 export, check
TEXT
}

last_stage=10
source "$root/tools/stages.sh"
read_options "corpus data config name dev gpus nj stage stop-stage workdir" "$@"
require_stages "$gpus" "$nj"

case $corpus in
  demo) label="demo corpus (synthetic voices)" ;;
  mini)
    label="librispeech-mini"
    [ -n "$data" ] || data=${SPEAKERKIT_DATA:-$root/../shared/data} ;;
  voxceleb)
    label="VoxCeleb"
    [ -n "$data" ] || { echo "run.sh: --corpus voxceleb needs --data DIR with voxceleb1, voxceleb2, musan, RIRS_NOISES" >&2; exit 2; } ;;
  *) echo "run.sh: unknown corpus $corpus; choose demo, mini or voxceleb" >&2; exit 2 ;;
esac
require_folders "$data" "$dev"
[ -z "$data" ] || data=$(cd "$data" && pwd)
if [ -z "$config" ]; then
  config=$here/conf/mini.yaml
  [ "$corpus" != voxceleb ] || config=$here/conf/resnet34.yaml
fi
[ -f "$config" ] || { echo "run.sh: no such configuration: $config" >&2; exit 2; }

lists=$workdir/data/$corpus
[ "$corpus" != demo ] || dev=${dev:-$lists/more/test}
exp=$workdir/exp/$corpus-${name:-$(basename "$config" .yaml)}
mkdir -p "$lists" "$exp"

data_key="$corpus $data $dev"
train_key="$data_key $(sha256sum <"$config" | cut -c1-16) ${set_args[*]-}"

stage_1() {
  case $corpus in
    demo)
      speakerkit data demo "$lists" --speakers 100 --seed 0 --workers "$nj"
      # More voices under the conditions of the test.
      speakerkit data demo "$lists/more" --speakers 1 --utterances 1 --test-speakers 60 --noises 1 --seed 1 --workers "$nj" ;;
    mini)
      tolerate speakerkit data prepare librispeech "$data/librispeech-mini/train-clean-100" "$lists/train" --workers "$nj"
      speakerkit data prepare librispeech "$data/librispeech-mini/test-other" "$lists/test" --trials all-pairs --workers "$nj"
      [ ! -d "$data/noise" ] || tolerate speakerkit data prepare noise "$data/noise" "$lists/noise" --workers "$nj"
      [ ! -d "$data/rir" ] || tolerate speakerkit data prepare rirs "$data/rir" "$lists/rir" --workers "$nj" ;;
    voxceleb)
      tolerate speakerkit data prepare voxceleb2 "$data/voxceleb2" "$lists/train" --workers "$nj"
      speakerkit data prepare voxceleb1 "$data/voxceleb1" "$lists/test" --workers "$nj"
      tolerate speakerkit data prepare musan "$data/musan" "$lists/noise" --workers "$nj"
      tolerate speakerkit data prepare rirs "$data/RIRS_NOISES" "$lists/rir" --subset simulated --workers "$nj" ;;
  esac
}

stage_2() {
  speakerkit data check "$lists/train"
  speakerkit data check "$lists/test"
  speakerkit data holdout "$lists/train" "$lists"
  local store
  for store in noise rir; do
    [ ! -d "$lists/$store" ] || speakerkit data lmdb "$lists/$store/wav.scp" "$lists/$store.lmdb"
  done
  if [ "$corpus" = voxceleb ]; then
    speakerkit data shards "$lists/train.list" "$lists/shards" --workers "$nj"
  fi
  # What scoring learns from (the mean, a cohort, PLDA), and speakers that it does not, to calibrate on.
  if [ -n "$dev" ]; then
    python3 "$root/tools/split_speakers.py" "$lists/train" "$lists/cohort"
    python3 "$root/tools/split_speakers.py" "$dev" "$lists/adapt" "$lists/calibration" --every 2
  else
    python3 "$root/tools/split_speakers.py" "$lists/train" "$lists/cohort" "$lists/calibration" --every 5
  fi
}

stage_3() {
  local args=(--set "exp_dir=$(quoted "$exp")")
  [ ! -f "$lists/valid.list" ] || args+=(--set "data.valid=$(quoted "$lists/valid.list")")
  if [ "$corpus" = voxceleb ]; then
    args+=(--set data.format=shard --set "data.train=$(quoted "$lists/shards/shard.list")")
  else
    args+=(--set "data.train=$(quoted "$lists/train.list")")
    [ ! -f "$lists/valid.trials" ] || args+=(--set "data.valid_trials=$(quoted "$lists/valid.trials")")
  fi
  if [ -d "$lists/noise.lmdb" ] && [ -d "$lists/rir.lmdb" ]; then
    args+=(--set "data.noise=$(quoted "$lists/noise.lmdb")" --set "data.rir=$(quoted "$lists/rir.lmdb")")
  else
    echo "note: no noises and room responses in $data, so nothing is augmented"
    args+=(--set "data.augment=[]")
  fi
  [ "$gpus" -eq 0 ] && args+=(--set trainer.device=cpu) || args+=(--set trainer.device=cuda --nproc "$gpus")
  [ ${#set_args[@]} -eq 0 ] || args+=("${set_args[@]}")
  speakerkit train "$config" "${args[@]}"
}

stage_4() {
  speakerkit average "$exp"
  local device=cpu
  [ "$gpus" -eq 0 ] || device=cuda
  embed() { speakerkit embed --model "$exp/bundle" --scp "$1" --out "$2" --overwrite --threads "$nj" --device "$device"; }
  embed "$lists/test/wav.scp" "$exp/embeddings/test.scp"
  local part
  for part in cohort calibration ${dev:+adapt}; do
    tolerate embed "$lists/$part/wav.scp" "$exp/embeddings/$part.scp"
  done
  speakerkit score draw-trials "$lists/calibration" "$exp/calibration/trials" --nontargets-each 10 \
    --embeddings "$exp/embeddings/calibration.scp"
}

# Scores of every list of test trials, and of trials to learn the calibration of this system from.
score() { # system, command of `speakerkit score`, its options
  local system=$1 command=$2 trials
  shift 2
  speakerkit score "$command" "$exp/embeddings/calibration.scp" "$exp/calibration/trials" "$exp/scores/calibration_$system" "$@"
  for trials in "$lists/test/trials"*; do
    speakerkit score "$command" "$exp/embeddings/test.scp" "$trials" "$exp/scores/$(basename "$trials")_$system" "$@"
  done
}

stage_5() {
  score cosine cosine
  score cosine_mean cosine --mean "$exp/embeddings/cohort.scp"
}

stage_6() {
  local speakers top
  speakers=$(wc -l <"$lists/cohort/spk2utt")
  top=$((speakers < 1200 ? speakers / 4 : 300))
  [ "$top" -ge 10 ] || top=$((speakers < 10 ? speakers : 10))
  score as_norm norm --cohort "$exp/embeddings/cohort.scp" --cohort-utt2spk "$lists/cohort/utt2spk" --top "$top" \
    --mean "$exp/embeddings/cohort.scp"
}

stage_7() {
  local embeddings=$exp/embeddings backends=$exp/backends
  rm -f "$exp/scores/"*_plda*
  if ! speakerkit plda train "$embeddings/cohort.scp" "$lists/cohort/utt2spk" "$backends/plda.safetensors"; then
    echo "note: no PLDA with so few recordings: its rows are left out"
    return
  fi
  score plda plda --plda "$backends/plda.safetensors"
  if [ -n "$dev" ]; then
    speakerkit plda adapt "$backends/plda.safetensors" "$embeddings/adapt.scp" "$backends/plda_adapted.safetensors"
    score plda_adapted plda --plda "$backends/plda_adapted.safetensors"
  else
    echo "note: no recordings like those of the test (--dev DIR), so PLDA is not adapted"
  fi
}

# Log-likelihood ratios of a system, learnt from its scores of the calibration trials.
calibrate() { # name of the result, system, whether with quality measures
  local name=$1 system=$2 trials
  if ! speakerkit score fit "$exp/calibration/$name.json" "$exp/scores/calibration_$system" ${3:+--quality "$exp/calibration/$3_calibration.tsv"}; then
    echo "note: $name cannot be calibrated, so its rows are left out"
    return
  fi
  for trials in "$lists/test/trials"*; do
    trials=$exp/scores/$(basename "$trials")
    speakerkit score llr "$exp/calibration/$name.json" "${trials}_$name.llr" "${trials}_$system" ${3:+--quality "$exp/calibration/$3_test.tsv"}
  done
}

stage_8() {
  local embeddings=$exp/embeddings part system
  rm -f "$exp/scores/"*.llr
  for system in cosine cosine_mean as_norm plda plda_adapted; do
    [ ! -f "$exp/scores/calibration_$system" ] || calibrate "$system" "$system"
  done
  for part in calibration test; do
    speakerkit score quality "$embeddings/$part.scp" "$exp/calibration/quality_$part.tsv" --scp "$lists/$part/wav.scp" \
      --cohort "$embeddings/cohort.scp"
  done
  calibrate as_norm_qmf as_norm quality
  # What `speakerkit similarity` and `verify` decide by.
  speakerkit calibrate --model "$exp/bundle" --embeddings "$embeddings/calibration.scp" --trials "$exp/calibration/trials" \
    --far 0.01 --far 0.001 --frr 0.01
}

stage_9() {
  local trials system scores=()
  for trials in "$lists/test/trials"*; do
    for system in cosine cosine_mean as_norm as_norm_qmf plda plda_adapted; do
      [ ! -f "$exp/scores/$(basename "$trials")_$system.llr" ] || scores+=("$exp/scores/$(basename "$trials")_$system.llr")
    done
  done
  speakerkit metrics "${scores[@]}" --llr --json --title-label "$label" --det "$exp/det.png" >"$exp/metrics.json"
  python3 "$root/tools/results.py" "$exp"
  speakerkit report trials "${scores[@]}" --out "$exp/report.html" --llr --title-label "$label" \
    --scp "$lists/test/wav.scp"
}

stage_10() {
  speakerkit export "$exp/bundle"
  speakerkit embed --model "$exp/bundle" --scp "$lists/test/wav.scp" --out "$exp/embeddings/test_onnx.scp" \
    --overwrite --threads "$nj" --device cpu
  python3 "$root/tools/compare_embeddings.py" "$exp/embeddings/test.scp" "$exp/embeddings/test_onnx.scp"
}

main() { # one function, so that bash has read all of this file before it runs for hours
  run_stage 1 prepare "$lists" "$corpus $data"
  run_stage 2 "lists and stores" "$lists" "$data_key"
  run_stage 3 train "$exp" "$train_key"
  run_stage 4 "average and extract" "$exp" "$train_key"
  run_stage 5 cosine "$exp" "$train_key"
  run_stage 6 AS-norm "$exp" "$train_key"
  run_stage 7 PLDA "$exp" "$train_key"
  run_stage 8 calibration "$exp" "$train_key"
  run_stage 9 report "$exp" "$train_key"
  run_stage 10 "export and check" "$exp" "$train_key"
  current=""

  if [ "$stop_stage" -ge 10 ]; then
    echo
    cat "$exp/results.txt"
    echo
    echo "DET plot:  $exp/det.png"
    echo "report:    $exp/report.html"
    echo "model:     $exp/bundle"
    echo "try next:  speakerkit similarity --model $exp/bundle A.wav B.wav"
    echo "           speakerkit embed --model $exp/bundle A.wav"
    [ "$corpus" != demo ] || echo "           run.sh --corpus mini, or a folder per speaker of your own: see README.md"
  fi
}

main; exit
