# Sourced by tests/cluster/run: ways of being (a)synchronous, wire types, threads, workers that come later.

event_says() { # RUN LOG PATTERN: some line of RUN/logs/LOG*.jsonl
    grep -Eq "$3" "$1"/logs/$2*.jsonl
}
sum_of() { # RUN KEY: over the shards of its status
    "$bin/chorale" status "$1" --json | tr -d ' \n' | grep -o "\"$2\":[0-9]*" | awk -F : '{ n += $2 } END { print n + 0 }'
}
some_of() { [ "$(sum_of "$1" "$2")" -gt 0 ]; }

case_ssp() {
    local run=$work/ssp
    make_run "$run" $long consistency.mode=ssp consistency.bound=0
    start "$run" --servers 2 --workers 3
    verdict "ssp: the job gets going" wait_for 60 reached "$run" 0.2
    verdict "ssp: status tells how often the bound made a worker wait" wait_for 20 some_of "$run" waits
    verdict "ssp: kill -9 of a worker" kill -9 "$(pids_of chorale-worker "$launcher" | head -n 1)"
    verdict "ssp: training ends" ends_well "$launcher"
    verdict "ssp: as good as asynchronous" as_good_as_undisturbed "$run"
}

# One worker stands still: the other two go on, which they do not with no backup. All within one epoch, whose end needs
# what the one that stands still has been given to train. In the middle of a push it holds the others up until its time
# limit: then it is let go on and stopped again.
case_backup_workers() {
    local run=$work/backup slow
    make_run "$run" data.train="$work/train-long" optimizer.schedule.from_epoch=2 consistency.mode=bsp consistency.backup=1
    start "$run" --servers 2 --workers 3
    verdict "backup worker: the job gets going" wait_for 60 reached "$run" 0.02
    slow=$(pids_of chorale-worker "$launcher" | head -n 1)
    verdict "backup worker: one stands still, the others go on" goes_on_without "$slow" "$run"
    kill -CONT "$slow"
    verdict "backup worker: training ends" ends_well "$launcher"
    verdict "backup worker: as good as asynchronous" as_good_as_undisturbed "$run"
    verdict "backup worker: steps without the slowest are counted" some_of "$run" stale
}
goes_on_without() { # PID RUN
    local before
    for try in 1 2 3; do
        kill -STOP "$1"
        before=$(done_part "$2")
        wait_for 5 reached "$2" "$(awk -v d="$before" 'BEGIN { print d + 0.04 }')" && return
        kill -CONT "$1"
    done
    return 1
}

case_wire_types() {
    local type run
    for type in bf16 fp16 int8; do
        run=$work/wire-$type
        make_run "$run" $long exchange.weights=$type exchange.gradients=$type
        verdict "$type on the wire: trains" train "$run" --servers 2 --workers 2
        verdict "$type on the wire: as good as fp32" as_good_as_undisturbed "$run"
    done
}

# What a capsule must hold: threads' states, the rounding that is still owed, Adam's two slots.
case_kill_all_bits_rich() {
    local run=$work/rich-cut rich="train.threads=2 train.streams=2 exchange.gradients=int8 exchange.weights=bf16 optimizer.type=adam optimizer.rate=0.003"
    make_run "$work/rich" $long $rich
    verdict "threads, int8, adam: the undisturbed run" train "$work/rich" --servers 2 --workers 1
    make_run "$run" $long $rich
    for round in 0.2 0.6; do
        start "$run" --servers 2 --workers 1
        verdict "threads, int8, adam: reaches $round" wait_for 60 reached_or_over "$run" $round "$launcher"
        verdict "threads, int8, adam: kill -9 at $round" kill_everything "$launcher"
    done
    verdict "threads, int8, adam: the same command resumes" train "$run" --servers 3 --workers 1
    verdict "threads, int8, adam: bit-equal to the undisturbed run" \
        same_weights "$run/final.safetensors" "$work/rich/final.safetensors"
}

case_switch() {
    local run=$work/switch mode
    make_run "$run" $long train.epochs=160
    start "$run" --servers 2 --workers 2
    verdict "switch: the job gets going" wait_for 60 reached "$run" 0.05
    for mode in ssp bsp async; do
        verdict "switch to $mode: accepted" "$bin/chorale" set "$run" consistency.mode=$mode
        verdict "switch to $mode: at the next turn of an epoch" wait_for 60 mode_is "$run" $mode
    done
    verdict "switch: an option that cannot change is refused" refuses_set "$run" train.streams=8
    verdict "switch: training ends" ends_well "$launcher"
    verdict "switch: as good as undisturbed" as_good_as_undisturbed "$run"
    verdict "switch: every epoch was trained once" [ "$("$bin/chorale" status "$run" --json | grep -c '"train_loss"')" -ge 160 ]
}
mode_is() { "$bin/chorale" status "$1" --json | tr -d ' \n' | grep -q "\"mode\":\"$2"; }
refuses_set() { ! "$bin/chorale" set "$1" "$2"; }

case_workers_doubled() {
    local run=$work/doubled k
    make_run "$run" $long optimizer.follow_workers=true
    start "$run" --servers 2 --workers 2
    verdict "workers doubled: the job gets going" wait_for 60 reached "$run" 0.3
    for k in 1 2; do
        "$bin/chorale-worker" "$run" >>"$work/log" 2>&1 &
        children+=($!)
    done
    verdict "workers doubled: the rate follows and the log says so" wait_for 20 event_says "$run" server- '"ev":"rate_follows".*"workers":4'
    verdict "workers doubled: training ends" ends_well "$launcher"
    verdict "workers doubled: as good as undisturbed" as_good_as_undisturbed "$run"
}
