/* States on disk. RUN/model.safetensors: the facts of the job, written once by chorale-prepare (what the
 * model is, the normalisation, the size of the data). RUN/checkpoints/set-NNNNNN/: shard files (safetensors,
 * each with its own hash in its metadata) and, renamed into place last, manifest.json with the hash
 * of every file and the state of the coordinator. Model files for people (RUN/final.safetensors) hold tensors
 * by name, row-major, with the facts in their metadata. Everything read is checked before use: ERR_STORAGE
 * for a file that cannot be read, ERR_DATA for one that is damaged, ERR_MODEL for one of another model, with
 * a sentence. Plain functions, any thread. */
#ifndef COMMON_SNAPSHOT_H
#define COMMON_SNAPSHOT_H

#include "common/blocks.h"
#include "common/config.h"
#include "common/model.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct data_facts {
    uint32_t utterances;
    uint64_t frames; /* inputs with a label, after skipping */
    uint64_t hash;   /* corpus_hash */
};

struct facts {
    uint64_t job;        /* random, names the job in every message */
    uint64_t model_hash; /* model_hash of model, mean, scale */
    struct model model;  /* owned */
    float *mean, *scale; /* (model.spec.feature_dim), owned; NULL, NULL = no global normalisation */
    bool speaker_cmvn, cmvn_var;
    struct data_facts train, dev; /* dev.utterances 0: no dev data */
    int32_t *silence;             /* targets that count as silence, owned */
    uint32_t num_silence;
};

void facts_fini(struct facts *f);
int facts_write(const char *run, const struct facts *f);
int facts_read(const char *run, struct facts *out);

/* Optimizer state beside the weights, as many floats each; which of them there are depends on the optimizer.
 * A file holds those that there are, as tensors "momentum" and "square". */
enum shard_slot { SLOT_MOMENTUM, SLOT_SQUARE, SHARD_SLOTS };

/* What a shard is, apart from its process. Blocks [first, first + count) of the vector. */
struct shard_state {
    struct blocks blocks; /* of the whole vector */
    uint32_t first, count;
    float *weights;                /* floats of these blocks, one after the other; owned */
    float *slot[SHARD_SLOTS];      /* the same; owned, NULL: this optimizer has none */
    uint64_t *version, *frames;    /* (count), owned: updates and frames applied */
    enum optimizer_type optimizer; /* whose state the slots are */
    uint64_t *since;               /* (count), owned: version at which that state began */
    uint32_t num_members;
    uint64_t *members;  /* (num_members), rising, owned */
    uint64_t *last_seq; /* (num_members, count), owned: last seq with a verdict */
    uint8_t *verdict;   /* (num_members, count), owned */
};

/* Zeroed arrays. slots: bit k = slot k is there. */
struct shard_state *shard_state_new(const struct blocks *b, uint32_t first, uint32_t count, uint32_t members,
                                    unsigned slots);
unsigned shard_state_slots(const struct shard_state *s);
/* The slots become exactly these: new ones are zero, others are freed. */
void shard_state_set_slots(struct shard_state *s, unsigned slots);
/* The state is for this optimizer, with these slots, from now on. What another one left means nothing to it:
 * its slots then begin anew, at the present versions. */
void shard_state_set_optimizer(struct shard_state *s, enum optimizer_type optimizer, unsigned slots);
void shard_state_free(struct shard_state **s);
size_t shard_state_floats(const struct shard_state *s);

/* --- shard files */
struct snapshot_file {
    char name[64];         /* shard-03-of-08.safetensors */
    uint64_t bytes, hash;  /* XXH3 of the whole file */
    uint32_t first, count; /* blocks */
};
/* Writes RUN/checkpoints/set-NNNNNN/<name> whole or not at all (makes the folder). */
int snapshot_write_shard(const char *run, uint32_t set, uint32_t shard, uint32_t shards,
                         const struct facts *f, const struct shard_state *s, struct snapshot_file *out);
/* --- sets */
/* RUN/checkpoints/set-NNNNNN, owned by the caller. */
char *snapshot_set_dir(const char *run, uint32_t set);
/* Numbers of all sets, complete or not, newest first; owned by the caller. Where the folder of the sets is
 * there but cannot be listed: NULL, count 0, and err_text says why. */
uint32_t *snapshot_list_sets(const char *run, size_t *count);

struct manifest {
    uint32_t set, epoch; /* epochs ended */
    double done;         /* part of the job done, 0..1 */
    bool exact;          /* taken at one step everywhere, with capsules */
    bool final;
    uint64_t wall; /* seconds since 1970 */
    uint64_t job, model_hash;
    uint32_t num_files, num_capsules;
    struct snapshot_file *files;    /* owned */
    struct snapshot_file *capsules; /* owned: capsule-RR.bin in rank order (first = rank) */
    char *state;                    /* the rows of the coordinator, one JSON object per line; owned */
};
void manifest_fini(struct manifest *m);
int snapshot_write_capsule(const char *run, uint32_t set, uint32_t rank, const void *data, size_t len,
                           struct snapshot_file *out);
int snapshot_read_capsule(const char *run, const struct manifest *m, uint32_t rank, char **data, size_t *len);
/* Makes the set complete: fsync, rename. */
int snapshot_write_manifest(const char *run, const struct manifest *m);
int snapshot_read_manifest(const char *run, uint32_t set, struct manifest *out);
/* It has a manifest: from then on nothing in it changes. */
bool snapshot_is_complete(const char *run, uint32_t set);
/* Number of the newest set that has a manifest and whose files are all there with the right size and hash; a
 * damaged set is told in the log and passed over. -1 if there is none. */
int64_t snapshot_newest(const char *run);
/* Blocks [first, first + count) out of whatever shard files the set has: resuming with another number of
 * servers is reading other ranges. It has the slots that some file of these blocks has; where another file
 * has none they are zero. */
int snapshot_read_blocks(const char *run, const struct manifest *m, const struct facts *f, uint32_t first,
                         uint32_t count, struct shard_state **out);
/* The newest file of exactly this shard in any set, complete or not, whose body matches its own hash, for a
 * server that fell alone; *set says which. ERR_DATA if there is none. */
int snapshot_read_own(const char *run, const struct facts *f, uint32_t shard, uint32_t shards, uint32_t *set,
                      struct shard_state **out);
/* The job went back to `set`: files of this shard in newer sets, which nobody completed or which are damaged,
 * get another name, so that snapshot_read_own does not take up what was abandoned. */
void snapshot_set_aside(const char *run, uint32_t set, uint32_t shard, uint32_t shards);
/* A newer file of this shard is on disk: removes those in older sets that were never completed, so that sets
 * which fail (a disk that is nearly full) do not pile up. */
void snapshot_drop_unfinished(const char *run, uint32_t set, uint32_t shard, uint32_t shards);
/* Removes sets beyond the newest `keep` complete ones (and incomplete ones older than those); never the
 * newest. */
void snapshot_prune(const char *run, uint32_t keep);

/* --- whole models */
/* Assembles a set into path: tensors by name, row-major. */
int snapshot_export(const char *run, uint32_t set, const char *path);
/* From a model file, or from a run directory (final.safetensors if it is there, else the newest complete
 * set): facts and params[P], aligned to 64 bytes, owned by the caller (free). */
int snapshot_load_model(const char *run_or_file, struct facts *facts, float **params);
/* A model file from a vector. */
int snapshot_save_model(const char *path, const struct facts *f, const float *params);

#endif
