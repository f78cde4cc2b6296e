# Everything a shell does to descriptors, with output that is the same every time.
set -u
cd "$TMPDIR"
echo "pipe: $(seq 1000 | grep 7 | sort -rn | head -1)"
exec 5>five 6<>six
echo five >&5; echo six >&6
exec 5>&- ; cat five; exec 6>&-
cat < <(echo "process substitution") > >(cat >&2) 2>/dev/null
diff <(seq 3) <(seq 4) | tail -1
coproc ECHO { while read -r line; do echo "co: $line"; done; }
echo one >&"${ECHO[1]}"; read -r answer <&"${ECHO[0]}"; echo "$answer"
eval "exec ${ECHO[1]}>&-"; wait "$ECHO_PID"; echo "coprocess: $?"
started=; for i in 1 2 3 4 5; do (exit "$i") & started="$started $!"; done
for job in $started; do wait "$job"; printf '%s ' "$?"; done; echo
(trap 'echo trapped; exit 9' TERM; kill -TERM "$BASHPID"; sleep 5); echo "trap: $?"
exec 9</dev/null; (ulimit -n 20; exec 15>&1; echo "limited" >&15); exec 9<&-
(exec 3>&1 4>&2; for fd in 3 4; do : >&"$fd" && echo "fd $fd"; done)
{ echo out; echo err >&2; } 2>&1 >/dev/null | tr a-z A-Z
cat <<TEXT | wc -c
here document
TEXT
cat <<<"here string"
(echo closed >&17) 2>/dev/null || echo "bad descriptor: $?"
timeout 0.2 sleep 5; echo "timeout: $?"
yes | head -c 100000 | wc -c
echo "pipe status: $(yes 2>/dev/null | head -1; echo "${PIPESTATUS[@]}")"
: > /dev/tcp/127.0.0.1/1 && echo connected
echo "refused: $?"
ls /proc/self/fd | tr '\n' ' ' | wc -w
mapfile -t lines < <(seq 5); echo "${#lines[@]} lines"
exec env printf 'end %s\n' "$BASH_SUBSHELL"
