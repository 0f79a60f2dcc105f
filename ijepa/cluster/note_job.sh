# Sourced at the start of a Slurm job's script, where `notes` is a folder: notes there on how many GPUs
# the job is, when it began, and until when it has lived, whatever ends it. Notes of a rule lie
# beneath, as its logs do: rule_evaluate/mae_0_knn. POSIX: a rule's script is run by sh.
log=$(readlink "/proc/$$/fd/1")
case $log in
*/rule_*/"$SLURM_JOB_ID.log")
    log=${log%/*}
    notes=$notes/rule_${log##*/rule_}
    ;;
esac
note=$notes/$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}.json
begun=$(date +%s.%N)
note_job() { # PART: two may write at the same time
    printf '{"job": "%s", "host": "%s", "gpus": %d, "begun": %s, "ended": %s}\n' \
        "$SLURM_JOB_ID" "$SLURMD_NODENAME" $((${SLURM_GPUS_ON_NODE:-0} * ${SLURM_NNODES:-1})) \
        "$begun" "$(date +%s.%N)" > "$note.$1" && mv "$note.$1" "$note"
}
mkdir -p "$notes"
note_job begun
while sleep 2 && kill -0 $$ 2> /dev/null; do note_job alive; done &
alive=$!
trap 'kill $alive 2> /dev/null; note_job ended' EXIT
