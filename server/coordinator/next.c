#include "server/coordinator/next.h"

#include "common/clock.h"
#include "common/config.h"
#include "common/err.h"
#include "common/files.h"
#include "common/log.h"

#include <stdlib.h>

#define LOOK_NS NS_PER_S

static bool is_same(const struct stat *a, const struct stat *b)
{
    return a->st_ino == b->st_ino && a->st_size == b->st_size && a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
           a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static bool read_next(const char *path, struct coordinate_next *out)
{
    struct config c;
    char why[400];
    int rc = config_load(path, &c);
    if (rc == 0) {
        rc = config_check(&c);
        *out = (struct coordinate_next){.mode = c.consistency.mode,
                                        .bound = (uint32_t)c.consistency.bound,
                                        .backup = (uint32_t)c.consistency.backup,
                                        .epochs = (uint32_t)c.train.epochs};
        config_free(&c);
    }
    if (rc < 0) log_event(LOG_WARN, "change_refused", "\"why\":%s", log_quote(why, sizeof why, err_text()));
    return rc == 0;
}

static void tell(struct next *n, const char *path, uint64_t now, struct coordinator *core)
{
    struct coordinate_next to;
    bool good = n->is_there && read_next(path, &to);
    if (good || n->waits) coordinate_change(core, now, good ? &to : NULL);
    n->waits = good;
}

void next_look(struct next *n, const char *run, uint64_t now, struct coordinator *core)
{
    struct stat st = {0};
    if (now < n->look_at) return;
    n->look_at = now + LOOK_NS;
    char *path = files_join(run, CONFIG_NEXT);
    bool is_there = stat(path, &st) == 0;
    if (is_there != n->is_there || !is_same(&st, &n->seen)) {
        n->is_there = is_there;
        n->seen = st;
        tell(n, path, now, core);
    }
    free(path);
}
