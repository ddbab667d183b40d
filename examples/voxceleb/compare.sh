#!/usr/bin/env bash
# The comparisons of README.md on librispeech-mini. Each row is a run of run.sh with a folder of its own; stages that are
# done are skipped, so the same command goes on where it stopped.
#   compare.sh [--workdir DIR] [backbones|heads|distillation ...]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
export PATH="$root/.venv/bin:$PATH"

workdir=$here groups=()
while [ $# -gt 0 ]; do
  case $1 in
    --workdir) [ $# -ge 2 ] || { echo "compare.sh: --workdir needs a value" >&2; exit 2; }; workdir=$2; shift 2 ;;
    backbones | heads | distillation) groups+=("$1"); shift ;;
    *) echo "compare.sh: unknown argument $1; choose from backbones, heads, distillation, --workdir DIR" >&2; exit 2 ;;
  esac
done
[ ${#groups[@]} -gt 0 ] || groups=(backbones heads distillation)

# 400 steps of 24 chunks of 1 s on one thread, no speed perturbation; a later --set wins.
budget=(--set trainer.steps=400 --set trainer.valid_every=0 --set trainer.threads=1
  --set data.batch_size=24 --set data.chunk_frames=100 --set 'data.speeds=[1.0]'
  --set schedule.warmup_steps=60 --set margin.start_step=60 --set margin.end_step=180)

row() { # name of the experiment, then options of run.sh
  local name=$1
  shift
  echo "== $name"
  rows+=("$workdir/exp/mini-$name")
  bash "$here/run.sh" --corpus mini --workdir "$workdir" --name "$name" "${budget[@]}" "$@" >"$workdir/$name.log" ||
    { cat "$workdir/$name.log" >&2; exit 1; }
}

backbone() { # name of the experiment, registered backbone, its arguments, further options
  local name=$1 model=$2 args=$3
  shift 3
  row "$name" --set "model.name=$model" --set "model.args=$args" "$@"
}

head() { # head, its arguments, further options
  local name=$1 args=$2
  shift 2
  row "head-$name" --set "head.name=$name" --set "head.args=$args" "$@"
}

ecapa_c512() { backbone ecapa-c512 ECAPA_TDNN_GLOB_c512 '{embed_dim: 192}'; }

compare_backbones() {
  backbone resnet34-thin ResNet34 '{m_channels: 16, embed_dim: 192}'
  ecapa_c512
  backbone campplus-half CAMPPlus '{growth_rate: 16, init_channels: 64, embed_dim: 192}'
  backbone repvgg-tiny-thin REPVGG_TINY_A0 '{base_width: 16, embed_dim: 192}'
  backbone redimnet-b0 ReDimNetB0 '{embed_dim: 192}' --set frontend.num_mels=60 --set trainer.steps=200 \
    --set schedule.warmup_steps=30 --set margin.start_step=30 --set margin.end_step=90
  backbone xvector XVEC '{embed_dim: 192}'
}

compare_heads() { # all on the small ECAPA-TDNN of mini.yaml
  local pairs=(--set data.sampling=balanced --set data.utterances_per_speaker=2)
  head softmax '{}'
  head add_margin '{scale: 30}'
  head arc_margin '{scale: 30}'
  head arc_margin_intertopk_subcenter '{scale: 30}'
  head sphere '{}' --set margin.final=0.1667
  head sphereface2 '{scale: 30}'
  head angular_prototypical '{}' "${pairs[@]}"
}

compare_distillation() { # the ECAPA-TDNN teaches a student of a fiftieth of its size, which is also trained alone
  local student=(--set 'model.args={channels: 32, joined: 96, embed_dim: 192, emb_bn: true}')
  ecapa_c512
  row student-alone "${student[@]}"
  row student-taught "${student[@]}" --set "distillation={teacher: '${rows[0]}/bundle', embedding: cosine, embedding_weight: 10}"
}

mkdir -p "$workdir"
for group in "${groups[@]}"; do
  rows=()
  "compare_$group"
  echo
  python3 "$root/benchmarks/bench_backbones.py" "${rows[@]}"
done
