#!/usr/bin/env bash
# The comparisons of README.md on librispeech-mini: backbones, heads, and a distilled small model. Each row is a run of
# run.sh with its own folder; finished ones are skipped, so the same command goes on where it stopped.
#   compare.sh [backbones|heads|distillation ...] [-- OPTIONS OF run.sh]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
export PATH="$root/.venv/bin:$PATH"

groups=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    backbones | heads | distillation) groups+=("$1"); shift ;;
    *) echo "compare.sh: unknown group $1; choose backbones, heads, distillation, and give options of run.sh after --" >&2; exit 2 ;;
  esac
done
[ $# -eq 0 ] || shift
[ ${#groups[@]} -gt 0 ] || groups=(backbones heads distillation)
options=("$@")

budget=(--set trainer.steps=400 --set trainer.valid_every=0 --set trainer.threads=1
  --set schedule.warmup_steps=60 --set margin.start_step=60 --set margin.end_step=180)

row() { # name, then options of run.sh
  local name=$1
  shift
  echo "== $name"
  bash "$here/run.sh" --corpus mini --name "$name" "${options[@]}" "${budget[@]}" "$@" | grep -v '^try next\|^  *speakerkit\|^$'
}

backbone() { # row name, registered name, arguments, further options
  local name=$1 model=$2 args=$3
  shift 3
  row "backbone-$name" --set "model.name=$model" --set "model.args=$args" "$@"
}

compare_backbones() {
  backbone resnet34-thin ResNet34 '{m_channels: 16, embed_dim: 192}'
  backbone ecapa-c512 ECAPA_TDNN_GLOB_c512 '{embed_dim: 192}'
  backbone campplus-half CAMPPlus '{growth_rate: 16, init_channels: 64, embed_dim: 192}'
  backbone xvector XVEC '{embed_dim: 192}'
  backbone repvgg-tiny REPVGG_TINY_A0 '{embed_dim: 192}'
  backbone redimnet-b0 ReDimNetB0 '{embed_dim: 192}' --set frontend.num_mels=60
}
