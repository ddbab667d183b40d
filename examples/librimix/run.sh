#!/usr/bin/env bash
# Only the voice that is enrolled: from mixtures to a scored and exported extraction model. `run.sh --help` explains the options.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
export PATH="$root/.venv/bin:$PATH"

corpus=demo data="" model=bsrnn mode=max condition=clean rate="" speakers=2 mixtures=100 bundle="" config="" name=""
gpus=0 nj=2 stage="" stop_stage=8 workdir=$here
set_args=()
command="run.sh $*"

usage() {
  cat <<'TEXT'
usage: run.sh [options]
  --corpus NAME     demo (generated voices, the default), mini (librispeech-mini), librimix
  --data DIR        where the corpus lies; for mini $SPEAKERKIT_DATA or ../shared/data by default; for librimix the folder with
                    Libri2Mix or Libri3Mix, or with metadata, LibriSpeech and, for both, wham_noise to make them from
  --model NAME      bsrnn (the default), spex_plus, voicefilter, atss_net; blind: conv_tasnet, dprnn
  --mode NAME       max (zeros up to the longest voice, the default), min (cut to the shortest)
  --condition NAME  clean (the default), both (with noise)
  --rate HZ         8000 or 16000; 8000 by default, for librimix 16000
  --speakers N      2 (the default) or 3 in a mixture
  --mixtures N      to draw and score on (demo, mini), 100 by default
  --bundle DIR      take this embedding model instead of training one; the outputs of blind models are told by it, and by the
                    references, which no user has, without
  --config FILE     experiment, conf/MODEL.yaml by default (conf/MODEL_mini.yaml for demo and mini)
  --name NAME       names the folder, exp/CORPUS-NAME-2mix-8k-max-clean or whatever the mixtures are; the model's name by default
  --set KEY=VALUE   override a value of the configuration; may be given several times
  --stage N         begin at this stage, run before or not; without it finished stages are skipped
  --stop-stage N    end after this stage
  --gpus N          GPUs to train on, 0 for the CPU
  --nj N            parallel jobs of preparation, extraction and scoring
  --workdir DIR     where data/ and exp/ are made, this folder by default
stages: 1 prepare  2 mixtures  3 train  4 average  5 extract  6 score  7 export, check  8 report
TEXT
}

last_stage=8
source "$root/tools/stages.sh"
read_options "corpus data model mode condition rate speakers mixtures bundle config name gpus nj stage stop-stage workdir" "$@"
require_stages "$gpus" "$nj" "$mixtures"

require_one_of() { # option, its value, the values there are
  local option=$1 value=$2
  shift 2
  [[ " $* " == *" $value "* ]] || { echo "run.sh: unknown $option $value; choose one of: $*" >&2; exit 2; }
}
require_one_of corpus "$corpus" demo mini librimix
require_one_of mode "$mode" min max
require_one_of condition "$condition" clean both
require_one_of "number of speakers" "$speakers" 2 3
case $corpus in
  demo) label="mixtures of generated voices" size=_mini ;;
  mini)
    label="mixtures of librispeech-mini" size=_mini
    [ -n "$data" ] || data=${SPEAKERKIT_DATA:-$root/../shared/data} ;;
  librimix)
    label="Libri${speakers}Mix" size="" rate=${rate:-16000}
    [ -n "$data" ] || { echo "run.sh: --corpus librimix needs --data DIR with Libri${speakers}Mix, or what it is made from" >&2; exit 2; } ;;
esac
rate=${rate:-8000}
require_one_of rate "$rate" 8000 16000
require_folders "$data" "$bundle"
[ -z "$data" ] || data=$(cd "$data" && pwd)
[ -z "$bundle" ] || bundle=$(cd "$bundle" && pwd)
[ -z "$bundle" ] || [ -f "$bundle/config.yaml" ] || { echo "run.sh: no embedding model in $bundle" >&2; exit 2; }
config=${config:-$here/conf/$model$size.yaml}
[ -f "$config" ] || { echo "run.sh: no such configuration: $config" >&2; exit 2; }

mkdir -p "$workdir"
workdir=$(cd "$workdir" && pwd)
kind=mix_$condition
folder=Libri${speakers}Mix/wav$((rate / 1000))k/$mode # of a corpus, above its splits
lists=$workdir/data/$corpus/${speakers}mix-$((rate / 1000))k-$mode-$condition
[ -n "$name" ] || { name=$(basename "$config" .yaml) && name=${name%"$size"}; }
exp=$workdir/exp/$corpus-$name-${lists##*/}
label="$label, $speakers speakers, $((rate / 1000)) kHz, $mode, $condition"
sources=$workdir/embedding/data/$corpus # of voices to mix and to enrol with
embedding=$bundle                       # model that the voices are told by
if [ "$corpus" = librimix ]; then
  embedding=${embedding:-$workdir/embedding/exp/librimix-resnet34/bundle}
else
  embedding=${embedding:-$workdir/embedding/exp/$corpus-mini/bundle}
fi
mkdir -p "$lists" "$exp"
device=cpu
[ "$gpus" -eq 0 ] || device=cuda
data_key="$corpus $data $folder $kind $mixtures"
train_key="$data_key $bundle $(sha256sum <"$config" | cut -c1-16) ${set_args[*]-}"
voices=blind # what voices are told by: an embedding model, an encoder of the model's own, or nothing
case $(sed -n 's/^embedder: *//p' "$config") in
  bundle*) voices=embedding ;;
  joint*) voices=joint ;;
esac

# Share of the mixtures whose voices are said to be all that is heard, of a model that can use it; none is where there is noise.
complete=$(sed -n 's/^complete_share: *//p' "$config")
[ -z "$complete" ] || [ "$condition" = clean ] || complete=0

stage_1() {
  if [ "$corpus" != librimix ]; then
    embedding_recipe 2
    return
  fi
  local found=$data split
  if [ ! -d "$data/$folder" ]; then
    make_librimix
    found=$workdir/data/librimix
    # Beside the mixtures, lists look for enrolments, and genders are looked up.
    [ "$found" -ef "$data" ] || ln -sfn "$data/LibriSpeech" "$data/metadata" "$found"
  fi
  for split in train-100 train-360 dev test; do
    [ "$split" = train-360 ] && [ ! -d "$found/$folder/$split" ] || prepare_split "$found" "$split"
  done
  rm -rf "$sources/voices"
  for split in train-clean-100 train-clean-360; do
    [ ! -d "$data/LibriSpeech/$split" ] ||
      tolerate speakerkit data prepare librispeech "$data/LibriSpeech/$split" "$sources/voices/$split" --workers "$nj"
  done
}

# As the published scripts do, of their metadata.
make_librimix() {
  local table noise=() metadata=$data/metadata/Libri${speakers}Mix
  [ -d "$metadata" ] || { echo "run.sh: neither $folder nor metadata/Libri${speakers}Mix is in $data" >&2; exit 2; }
  [ "$condition" = clean ] || noise=(--wham "$data/wham_noise")
  for table in "$metadata"/*-*.csv; do
    [[ $table == *_info.csv ]] || speakerkit data librimix "$table" "$workdir/data/librimix" --librispeech "$data/LibriSpeech" \
      --rate "$rate" --mode "$mode" --types "$kind" --workers "$nj" "${noise[@]}"
  done
}

# Of dev and test, enrolments are those of the lists that are there: enrolments/dev.tsv, enrolments/test/spk1.enroll or the like.
prepare_split() { # folder of the corpus, split
  local list enrolled=() subset=$folder/$2/$kind gathered=$lists/$2.enrolments
  for list in "$data/enrolments/$2".* "$data/enrolments/$2"/*; do
    [ -f "$list" ] || continue
    [ "${#enrolled[@]}" -gt 0 ] || : >"$gathered"
    awk 1 "$list" >>"$gathered"
    enrolled=(--trials "$gathered")
    [[ $list != *.tsv ]] || subset=$folder/$kind # USED's say where its mixtures are
  done
  speakerkit data prepare librimix "$1" "$lists/$2" --subset "$subset" "${enrolled[@]}" --workers "$nj"
}

stage_2() {
  if [ "$corpus" = librimix ]; then
    join "$lists/train" "$mixture_files" "$lists"/train-*
    leave_out "$lists/train" "$lists/dev" # USED's dev is a part of train-100
    [ ! -d "$sources/voices" ] || join "$sources/train" "wav.scp utt2spk spk2utt utt2dur" "$sources/voices"/*
    return
  fi
  # What is trained on is mixed in training, without end. Of each mixture of absent, somebody else is wanted, too.
  local held=$((mixtures < 50 ? mixtures : 50))
  draw valid "$sources/calibration" "$held"
  draw absent "$sources/calibration" "$held" --absent-share 1 --seed 1
  draw test "$sources/test" "$mixtures"
}

mixture_files="wav.scp ref.scp enroll.scp utt2spk reco2dur reco2utts rttm"

join() { # directory to write, its files, directories whose keys differ
  local out=$1 file part files=$2
  shift 2
  rm -rf "$out"
  mkdir -p "$out"
  for file in $files; do
    for part in "$@"; do cat "$part/$file"; done | LC_ALL=C sort >"$out/$file"
  done
}

leave_out() { # directory of mixtures, another one whose mixtures it shall not have
  local file
  for file in $mixture_files; do
    awk 'FNR == NR { held[$1]; next } { key = $1 == "SPEAKER" ? $2 : $1; mixture = key; sub(/-[^-]*$/, "", mixture) }
      !(key in held) && !(mixture in held)' "$2/wav.scp" "$1/$file" >"$1/.$file"
    mv "$1/.$file" "$1/$file"
  done
}

draw() { # name, Kaldi directory of voices, how many, further options
  local folder=$lists/$1 source=$2 count=$3 noise=()
  shift 3
  [ "$condition" = clean ] || noise=(--noise "$sources/noise")
  rm -rf "$folder"
  speakerkit data mixtures "$source" "$folder" --count "$count" --min-speakers "$speakers" --max-speakers "$speakers" \
    --rate "$rate" --mode "$mode" --workers "$nj" "${noise[@]}" "$@"
}

stage_3() {
  local given args=(--set "exp_dir=$(quoted "$exp")" --set "data.mixing.sample_rate=$rate")
  args+=(--set "data.mixing.speakers=[$speakers,$speakers]")
  if [ "$corpus" = librimix ]; then
    args+=(--set "data.train=$(quoted "$lists/train")" --set "data.valid=$(quoted "$lists/dev")")
    [ ! -d "$sources/train" ] || args+=(--set "data.voices=$(quoted "$sources/train")")
  else
    args+=(--set "data.train=$(quoted "$sources/cohort")" --set "data.valid=$(quoted "$lists/valid")")
    if [ -f "$sources/train/spk2gender" ]; then
      args+=(--set "data.genders=$(quoted "$sources/train/spk2gender")")
    else
      args+=(--set data.mixing.same_gender_share=null --set data.mixing.first_same_gender_share=null)
      args+=(--set data.mixing.curriculum=0)
    fi
  fi
  if [ "$voices" = embedding ]; then
    embedding_model
    args+=(--set "embedder=$(quoted "$embedding")")
  fi
  local argument # models that separate, if only in training, have an output for each voice
  for argument in sources separate; do
    ! grep -q "\b$argument: [0-9]" "$config" || args+=(--set "model.args.$argument=$speakers")
  done
  [ -z "$complete" ] || args+=(--set "complete_share=$complete")
  training_options "$gpus" "$sources" $([ "$condition" = clean ] || echo noise)
  speakerkit train "$config" "${args[@]}" "${given[@]}" ${set_args[@]+"${set_args[@]}"}
}

embedding_model() {
  if [ -n "$bundle" ]; then
    echo "$bundle is taken"
  elif [ "$corpus" != librimix ]; then
    embedding_recipe 4
  else
    [ -d "$sources/train" ] || { echo "run.sh: no LibriSpeech in $data to train an embedding model on; give --bundle" >&2; exit 2; }
    train_embedding "$here/../voxceleb/conf/resnet34.yaml" "$(dirname "$embedding")" "$sources/train" 16000 "$sources"
  fi
}

stage_4() { # a small corpus is learnt by heart in the end: there the checkpoint counts that was best in validation
  local chosen=()
  [ "$corpus" = librimix ] || chosen=(--best)
  speakerkit average "$exp" ${chosen[@]+"${chosen[@]}"}
}

stage_5() {
  rm -rf "$exp/estimates" "$exp/complete/estimates" "$exp/absent"
  if [ "$voices" = blind ]; then
    python3 "$root/tools/separate.py" "$lists/test" "$exp/estimates" --model "$exp/bundle" --device "$device" \
      ${bundle:+--embedder "$bundle"}
    return
  fi
  local options=(--model "$exp/bundle" --threads "$nj" --device "$device")
  [ ! -d "$lists/absent" ] || speakerkit extract "$lists/absent" --out "$exp/absent" --calibrate "${options[@]}"
  speakerkit extract "$lists/test" --out "$exp/estimates" "${options[@]}"
  [ "${complete:-0}" = 0 ] || speakerkit extract "$lists/test" --out "$exp/complete/estimates" --complete "${options[@]}"
}

stage_6() {
  local folder
  for folder in "$exp" "$exp/complete"; do
    rm -rf "$folder/scores"
    [ ! -d "$folder/estimates" ] ||
      speakerkit score extraction "$lists/test" "$folder/estimates" --bootstrap 1000 --workers "$nj" --out "$folder/scores"
  done
}

stage_7() {
  speakerkit export "$exp/bundle"
}

stage_8() {
  local told_by=enrolment
  [ "$voices" != blind ] || told_by=${bundle:+embedding}
  python3 "$root/tools/extraction_results.py" "$exp" --label "$label" --command "$command" --told-by "${told_by:-oracle}"
  speakerkit report extraction "$lists/test" "$exp/estimates" --scores "$exp/scores/scores.json" --title-label "$label" \
    --out "$exp/report.html"
}

main() { # one function, so that bash has read all of this file before it runs for hours
  run_stage 1 prepare "$lists" "$data_key"
  run_stage 2 mixtures "$lists" "$data_key"
  run_stage 3 train "$exp" "$train_key"
  run_stage 4 average "$exp" "$train_key"
  run_stage 5 extract "$exp" "$train_key"
  run_stage 6 score "$exp" "$train_key"
  run_stage 7 "export and check" "$exp" "$train_key"
  run_stage 8 report "$exp" "$train_key"
  current=""

  if [ "$stop_stage" -ge 8 ]; then
    echo
    cat "$exp/results.txt"
    echo
    echo "report:    $exp/report.html (the worst estimates, to be heard)"
    echo "model:     $exp/bundle"
    [ "$voices" = blind ] || echo "try next:  speakerkit extract MIXTURE.wav --enrol A.wav --model $exp/bundle --out voices"
  fi
}

main; exit
