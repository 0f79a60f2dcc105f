# Sourced at the start of a Slurm job's script, in which `notes` names a folder. Writes a note there
# with the job's number of GPUs, its begin and its last sign of life, whatever ends it. The note of
# a rule's job lies in a subfolder named as that of its logs: rule_evaluate/mae_0_knn. The code is
# POSIX, because a rule's script is run by sh.
log=$(readlink "/proc/$$/fd/1")
case $log in
*/rule_*/"$SLURM_JOB_ID.log")
    log=${log%/*}
    notes=$notes/rule_${log##*/rule_}
    ;;
esac
note=$notes/$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}.json
begun=$(date +%s.%N)
note_job() { # PART keeps apart two that write at the same time
    printf '{"job": "%s", "host": "%s", "gpus": %d, "begun": %s, "ended": %s}\n' \
        "$SLURM_JOB_ID" "$SLURMD_NODENAME" $((${SLURM_GPUS_ON_NODE:-0} * ${SLURM_NNODES:-1})) \
        "$begun" "$(date +%s.%N)" > "$note.$1" && mv "$note.$1" "$note"
}
mkdir -p "$notes"
note_job begun
while sleep 2 && kill -0 $$ 2> /dev/null; do note_job alive; done &
alive=$!
trap 'kill $alive 2> /dev/null; note_job ended' EXIT
