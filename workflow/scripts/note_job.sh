# Sourced by each Slurm job of a rule before anything else (workflow/rules/exclusive.smk): notes under
# $IJEPA_JOBS, where its log has its place among the logs, when the job began and on how many GPUs.
# That the note is touched says until when: a job that is killed says nothing. For evals/gpu_hours.py.
log=$(readlink "/proc/$$/fd/1")
note="$IJEPA_JOBS/rule_${log##*/rule_}"
note="${note%.log}-${SLURM_RESTART_COUNT:-0}.json"
mkdir -p "${note%/*}"
printf '{"job": "%s", "begun": %s, "gpus": %d}\n' \
    "$SLURM_JOB_ID" "$(date +%s.%N)" "${SLURM_GPUS_ON_NODE:-0}" > "$note.part"
mv "$note.part" "$note"
while sleep 2 && kill -0 $$ 2> /dev/null; do touch "$note"; done &
trap 'touch "$note"' EXIT
