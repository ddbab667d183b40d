# What recipes share, for them to source: stages that are skipped where they are done, and how a failure is told.
# They set stage, stop_stage and last_stage, and the folders lists and exp, in which the marks lie.

require_stages() { # further options that are numbers
  local number
  for number in "$@" "${stage:-1}" "$stop_stage"; do
    [[ $number =~ ^[0-9]+$ ]] || { echo "run.sh: $number is not a number; see run.sh --help" >&2; exit 2; }
  done
  [ "${stage:-1}" -ge 1 ] && [ "${stage:-1}" -le "$stop_stage" ] && [ "$stop_stage" -le "$last_stage" ] ||
    { echo "run.sh: stages run from 1 to $last_stage, and --stop-stage is not before --stage" >&2; exit 2; }
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
