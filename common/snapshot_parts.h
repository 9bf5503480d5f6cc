/* What the files of snapshot share; for them alone. Contract: common/snapshot.h. */
#ifndef COMMON_SNAPSHOT_PARTS_H
#define COMMON_SNAPSHOT_PARTS_H

#include "common/safetensors.h"
#include "common/snapshot.h"

#include <inttypes.h>
#include <jansson.h>

#define SNAPSHOT_SETS "checkpoints"
#define SNAPSHOT_SET  "set-%06" PRIu32

/* --- facts.c */
#define FACTS_PAIRS 10
/* The facts as metadata of a file of this format, and their normalisation as tensors. Undo with the fini. */
struct facts_parts {
    struct safetensors_pair pairs[FACTS_PAIRS];
    char *texts[FACTS_PAIRS]; /* owned: the values */
    size_t num_pairs;
    struct safetensor tensors[2];
    size_t num_tensors;
};
void facts_parts_init(struct facts_parts *p, const struct facts *f, const char *format);
void facts_parts_fini(struct facts_parts *p);
/* Out of an open file; `path` is for the sentence. model_hash is computed anew; *stored gets the one of the
 * file. */
int facts_parse(const struct safetensors *s, const char *path, const char *format, struct facts *out,
                uint64_t *stored);
/* 16 hexadecimal digits, no more. */
bool facts_parse_hash(const char *text, uint64_t *out);
/* A whole number of 0..max; false if the object has none. */
bool facts_get_number(const json_t *object, const char *key, uint64_t max, uint64_t *out);
bool facts_get_u32(const json_t *object, const char *key, uint32_t *out);

/* --- snapshot.c */
/* RUN/checkpoints/set-NNNNNN/name, owned by the caller. */
char *snapshot_set_file(const char *run, uint32_t set, const char *name);
void snapshot_shard_name(uint32_t shard, uint32_t shards, char out[64]);

/* A shard file that is open and checked against the facts and its own hash. */
struct shard_file {
    struct safetensors *file;
    const struct safetensor *weights, *versions, *frames, *members, *last_seq, *verdicts;
    const struct safetensor *since; /* NULL: an old file, 0 everywhere */
    enum optimizer_type optimizer;
    const struct safetensor *slot[SHARD_SLOTS]; /* NULL: the file does not have it */
    unsigned slots;                             /* bit k: slot k is there */
    uint32_t set, first, count, num_members;
    uint64_t *members_list; /* (num_members), rising, owned */
};
int shard_file_open(const char *path, const struct facts *f, struct shard_file *out);
void shard_file_close(struct shard_file *s);
/* Copies the blocks that both have into the state, whose members and slots contain those of the file. */
int shard_file_copy(const struct shard_file *s, struct shard_state *into);

#endif
