#!/bin/bash
# Starts the run "big" on 2 hosts over SSH. Written by `qwen-align launch --hosts`;
# untested on hardware: read it before it runs. It needs SSH without a password.
# All hosts need this Python, the recipe and the home at these paths; me@gpu01 has to be reachable at gpu01:29400.
# Ctrl-C ends it on all of them. Run it again to go on from the last checkpoint.
set -uo pipefail
hosts=(me@gpu01 gpu02)
run='cd /work && exec /env/bin/python -P -m qwen_align.cli run /work/recipe.yaml --home '"'"'/work/a home'"'"' --set seed=5 --tiny --rendezvous gpu01:29400 --node-rank '

pids=()
for rank in "${!hosts[@]}"; do
  host="${hosts[$rank]}"
  # A terminal (-tt), so that the run ends with its connection.
  ssh -tt -o BatchMode=yes "$host" "$run$rank" </dev/null > >(sed "s/^/[$host] /") 2>&1 &
  pids+=("$!")
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null' INT TERM
code=0
for pid in "${pids[@]}"; do
  wait "$pid" || code=$?
done
exit "$code"
