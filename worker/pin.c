#include "worker/pin.h"

#include "common/err.h"

#include <errno.h>
#include <hwloc.h>
#include <stdlib.h>
#include <string.h>

struct pin {
    hwloc_topology_t topology;
    hwloc_bitmap_t allowed; /* processors the caller had before */
    int cores;
};

static int refused(const char *what)
{
    return err_set(ERR_FAIL, "%s: %s; set train.pin to false", what, strerror(errno));
}

static hwloc_obj_t core_after(const struct pin *p, hwloc_obj_t core)
{
    do core = hwloc_get_next_obj_by_type(p->topology, HWLOC_OBJ_CORE, core);
    while (core && !hwloc_bitmap_intersects(core->cpuset, p->allowed));
    return core;
}

static int discover(struct pin *p)
{
    p->allowed = hwloc_bitmap_alloc();
    if (!p->allowed || hwloc_topology_init(&p->topology) < 0 || hwloc_topology_load(p->topology) < 0 ||
        hwloc_get_cpubind(p->topology, p->allowed, HWLOC_CPUBIND_THREAD) < 0)
        return refused("cannot find out what cores there are");
    for (hwloc_obj_t c = core_after(p, NULL); c; c = core_after(p, c)) p->cores++;
    return p->cores ? 0 : err_set(ERR_FAIL, "this machine tells of no cores; set train.pin to false");
}

/* The processors of core number `index` that are allowed; their first one. */
static int take_core(const struct pin *p, uint64_t index, hwloc_bitmap_t out)
{
    hwloc_obj_t core = core_after(p, NULL);
    while (index-- > 0) core = core_after(p, core);
    hwloc_bitmap_and(out, core->cpuset, p->allowed);
    return hwloc_bitmap_first(out);
}

static int bind_all(const struct pin *p, const pthread_t *threads, int count, uint64_t first, int *cores_out)
{
    hwloc_bitmap_t set = hwloc_bitmap_alloc();
    int rc = set ? 0 : refused("cannot bind threads to cores");
    for (int k = 0; rc == 0 && k < count; k++) {
        cores_out[k] = take_core(p, (first + (uint64_t)k) % (uint64_t)p->cores, set);
        if (hwloc_set_thread_cpubind(p->topology, threads[k], set, 0) < 0)
            rc = refused("cannot bind threads to cores");
    }
    hwloc_bitmap_free(set);
    return rc;
}

int pin_threads(const pthread_t *threads, int count, uint64_t first, int *cores_out, struct pin **out)
{
    struct pin *p = xcalloc(1, sizeof *p);
    int rc = discover(p);
    if (rc == 0) rc = bind_all(p, threads, count, first, cores_out);
    if (rc < 0) pin_free(&p);
    *out = p;
    return rc;
}

int pin_cores(const struct pin *p)
{
    return p->cores;
}

void pin_free(struct pin **p_in)
{
    struct pin *p = *p_in;
    if (!p) return;
    if (p->cores) hwloc_set_cpubind(p->topology, p->allowed, HWLOC_CPUBIND_THREAD);
    if (p->topology) hwloc_topology_destroy(p->topology);
    hwloc_bitmap_free(p->allowed);
    free(p);
    *p_in = NULL;
}
