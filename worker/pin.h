/* Threads to cores: the one file that sees hwloc. Cores are counted among those that the calling thread may
 * use (taskset, cgroups, Slurm), in the order of the machine's topology, so neighbours share caches. Source:
 * hwloc's objects of type core; a core's hardware threads stay together. One thread. */
#ifndef WORKER_PIN_H
#define WORKER_PIN_H

#include <pthread.h>
#include <stdint.h>

struct pin;

/* Binds threads[k] to core (first + k) mod (the cores there are), threads[0] being the caller. cores_out
 * (count): the number of the first processor of each one's core, as the system counts them. ERR_FAIL with a
 * sentence if the system does not let us; then the caller is not bound and *out is NULL. */
int pin_threads(const pthread_t *threads, int count, uint64_t first, int *cores_out, struct pin **out);
/* Cores that this process may use. */
int pin_cores(const struct pin *p);
/* The calling thread gets back what it had, so that the threads it makes next are free. Accepts NULL. */
void pin_free(struct pin **p);

#endif
