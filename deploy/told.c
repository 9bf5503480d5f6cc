#include "deploy/told.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

bool told_number(const json_t *object, const char *key, double *out)
{
    const json_t *v = json_object_get(object, key);
    if (!json_is_number(v) || !isfinite(json_number_value(v))) return false;
    *out = json_number_value(v);
    return true;
}

void told_plain(const char *text, char *out, size_t size)
{
    size_t n = 0;
    for (; *text && n + 1 < size; text++)
        out[n++] = (unsigned char)*text < 0x20 || *text == 0x7F ? '?' : *text;
    out[n] = '\0';
}

static const char *string(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

void told_mode(const json_t *status, char *out, size_t size)
{
    double factor = 1;
    told_plain(string(status, "mode"), out, size);
    if (!out[0]) return;
    size_t n = strlen(out);
    if (told_number(status, "rate_factor", &factor) && factor != 1)
        n += (size_t)snprintf(out + n, size - n, ", rate x %.3g", factor);
    if (n < size && json_is_true(json_object_get(status, "warm_start")))
        snprintf(out + n, size - n, ", one worker trains alone");
}

void told_change(const json_t *status, char *out, size_t size)
{
    char to[64], when[48] = "when the run is trained further";
    double after;
    const char *next = string(status, "next");
    out[0] = '\0';
    if (!next[0]) return;
    told_plain(next, to, sizeof to);
    if (told_number(status, "next_after", &after) && after <= 0) snprintf(when, sizeof when, "at once");
    if (told_number(status, "next_after", &after) && after > 0)
        snprintf(when, sizeof when, "after epoch %.0f", after);
    if (strcmp(next, string(status, "mode")) == 0)
        snprintf(out, size, "changed options hold %s", when);
    else
        snprintf(out, size, "switching to %s %s", to, when);
}

size_t told_live(const json_t *workers)
{
    size_t i, live = 0;
    const json_t *w;
    json_array_foreach(workers, i, w)
    {
        const char *state = string(w, "state");
        if (strcmp(state, "live") == 0 || strcmp(state, "holding") == 0) live++;
    }
    return live;
}

bool told_waits(const json_t *status, const json_t *shards)
{
    const char *mode = string(status, "mode");
    bool any = strncmp(mode, "ssp", 3) == 0 || strncmp(mode, "bsp", 3) == 0;
    double waits;
    size_t i;
    const json_t *s;
    json_array_foreach(shards, i, s)
    {
        any = any || (told_number(s, "waits", &waits) && waits > 0);
    }
    return any;
}
