# Sourced by tests/cluster/run: data that can be learnt, runs, faults, verdicts. Everything lives under $work, which
# is removed; processes are found by the pids that the runs themselves publish, and ended by pid.
bin=$PWD/build/${VARIANT:-release}/bin
work=$(mktemp -d "${TMPDIR:-/tmp}/chorale-cluster.XXXXXX")
passed=0 failed=0 skipped=0
children=()

clean() {
    for pid in "${children[@]}"; do kill -9 "$pid" 2>/dev/null; done
    rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM

pass() { passed=$((passed + 1)); echo "ok    $1"; }
fail() { failed=$((failed + 1)); echo "FAIL  $1: ${*:2}"; }
verdict() { # NAME COMMAND...: passes if the command succeeds
    local name=$1
    shift
    if "$@" >"$work/verdict" 2>&1; then pass "$name"; else fail "$name" "$(tail -n 5 "$work/verdict" | tr '\n' ' ')"; fi
}

# DIR UTTERANCES SEED: 13 features a frame around a mean that its state gives; 12 states, in runs of 3 to 9 frames.
make_data() {
    mkdir -p "$1/ark"
    awk -v dir="$1" -v n="$2" -v seed="$3" '
        function noise() { return rand() + rand() + rand() - 1.5 }
        BEGIN {
            srand(7); for (k = 0; k < 12; k++) for (d = 0; d < 13; d++) mean[k, d] = 2 * noise()
            srand(seed)
            for (u = 0; u < n; u++) {
                id = sprintf("utt%04d", u); file = dir "/ark/" id; labels = id; state = int(12 * rand())
                print " [" >file
                for (t = 0; t < 60 + 90 * rand();) {
                    state = (state + 1 + int(3 * rand())) % 12
                    for (left = 3 + int(7 * rand()); left > 0; left--) {
                        line = ""
                        for (d = 0; d < 13; d++) line = line sprintf(" %.4f", mean[state, d] + 1.2 * noise())
                        if (t++) print "" >file
                        printf "%s", line >file
                        labels = labels " " state
                    }
                }
                print " ]" >file; close(file)
                print id " ark/" id >(dir "/feats.scp")
                print labels >(dir "/ali.ark")
                print id " spk" int(u / 4) >(dir "/utt2spk")
            }
        }'
}

# TIMES DIR OUT: the utterances of DIR so many times over, for epochs that take a while.
many_times() {
    mkdir -p "$3"
    ln -s "$2/ark" "$3/ark"
    for file in feats.scp ali.ark utt2spk; do
        for i in $(seq "$1"); do sed "s/^/t$i-/" "$2/$file"; done >"$3/$file"
    done
}

# RUN [key=value ...]: a small job; about 37,000 parameters in three blocks, so that three servers own one each.
make_run() {
    local run=$1 sets=() s
    shift
    for s in "$@"; do sets+=(--set "$s"); done
    "$bin/chorale" init "$run" --data "$work/train" --dev "$work/dev" --set data.targets=ali.ark \
        --set 'model.layers=[{cells: 96, projection: 64}]' --set model.init.range=0.1 --set train.streams=4 \
        --set train.epochs=3 --set train.chunk_utterances=8 --set optimizer.rate=0.1 --set optimizer.momentum=0.8 \
        --set optimizer.schedule.type=halve --set optimizer.schedule.from_epoch=3 "${sets[@]}" >/dev/null 2>&1
}

train() { # RUN ARGS...: in the foreground
    timeout -k 10 120 "$bin/chorale" train "$@" >>"$work/log" 2>&1
}
start() { # RUN ARGS...: in the background; $launcher is its pid
    "$bin/chorale" train "$@" >>"$work/log" 2>&1 &
    launcher=$!
    children+=("$launcher")
}
status() { # RUN FILTER: a value of status.json, "" if there is none yet
    [ -f "$1/status.json" ] && "$bin/chorale" status "$1" --json 2>/dev/null | tr -d ' \n' | sed -n "$2"
}
done_part() { status "$1" 's/.*"done":\([0-9.e-]*\).*/\1/p'; }
wait_for() { # SECONDS COMMAND...: until it succeeds
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || { echo "waited in vain for: $*" >&2; return 1; }
        sleep 0.02
    done
}
reached() { awk -v d="$(done_part "$1")" -v p="$2" 'BEGIN { exit !(d != "" && d + 0 >= p) }'; }
# The processes of a run: children of its launcher, by the name of their program. The launcher itself is $2.
pids_of() { # PROGRAM LAUNCHER
    pgrep -P "$2" -x "${1:0:15}" || true
}
bits() { cmp "$1" "$2"; }
accuracy() { # RUN: of the dev data, in percent
    "$bin/chorale" eval "$1" --data "$work/dev" --targets ali.ark --json | tr -d ' \n' |
        sed -n 's/.*"frame_accuracy":\([0-9.]*\).*/\1/p'
}
kill_everything() { # LAUNCHER: with all of its processes
    local pids
    pids=$(pgrep -P "$1")
    kill -9 "$1" $pids 2>/dev/null
    wait "$1" 2>/dev/null
    wait_for 10 all_gone $pids
}
all_gone() { for p in "$@"; do kill -0 "$p" 2>/dev/null && return 1; done; return 0; }
