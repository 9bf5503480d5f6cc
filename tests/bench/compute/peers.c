#include "tests/bench/compute/peers.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>

#define TORCH  "tests/bench/peers/torch_lstmp.py --model %s --streams %d --seconds %g 2>/dev/null"
#define ONEDNN "build/release/bench/onednn_lstmp %s %d %g 2>/dev/null"

const char *peers_name(enum peer which)
{
    static const char *const names[PEERS] = {"PyTorch", "oneDNN"};
    return names[which];
}

/* Each prints one line of JSON. */
static FILE *start(enum peer which, enum bench_model model, enum bench_streams streams, double seconds)
{
    char command[160];
    const char *name = models_name(model);
    int s = models_streams(streams);
    if (which == PEER_TORCH)
        snprintf(command, sizeof command, TORCH, name, s, seconds);
    else
        snprintf(command, sizeof command, ONEDNN, name, s, seconds);
    return popen(command, "r");
}

double peers_rate(enum peer which, enum bench_model model, enum bench_streams streams, double seconds)
{
    char line[512] = "", rest[512];
    FILE *f = start(which, model, streams, seconds);
    if (!f) return NAN;
    if (!fgets(line, sizeof line, f)) line[0] = '\0';
    while (fgets(rest, sizeof rest, f)) continue; /* it is not to write to a pipe that is closed */
    json_t *said = json_loads(line, 0, NULL);
    const char *figure = which == PEER_TORCH ? "train_update" : "train";
    double rate = json_number_value(json_object_get(said, figure));
    json_decref(said);
    return pclose(f) == 0 && rate > 0 ? rate : (double)NAN;
}
