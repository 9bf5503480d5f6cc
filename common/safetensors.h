/* Files in the safetensors format: 8 bytes little-endian length, a JSON header padded with spaces to 8 bytes,
 * the tensors one after the other. Files written here carry "self_xxh3" in their metadata: XXH3 of the whole
 * file with those 16 digits read as zeros, so that a file proves itself. Reading believes nothing:
 * ERR_STORAGE for a file that cannot be read, ERR_DATA for a damaged one, with a sentence. Any thread, one
 * per handle. Source: github.com/huggingface/safetensors, "Format". */
#ifndef COMMON_SAFETENSORS_H
#define COMMON_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum safetensors_type { TENSOR_F32, TENSOR_U64, TENSOR_U8 };

#define SAFETENSORS_DIMS 4

struct safetensor {
    const char *name; /* reading: a view into the handle */
    enum safetensors_type type;
    uint32_t dims;
    uint64_t shape[SAFETENSORS_DIMS];
    const void *data; /* writing: borrowed. Row-major. */
    uint64_t bytes;   /* reading: product of the shape x size of the type */
    uint64_t at;      /* reading: offset in the file */
};
struct safetensors_pair {
    const char *key, *value;
};

/* Whole or not at all (files_write_with); *bytes and *hash (XXH3) of the whole file, either may be NULL. */
int safetensors_write(const char *path, const struct safetensors_pair *metadata, size_t pairs,
                      const struct safetensor *tensors, size_t count, uint64_t *bytes, uint64_t *hash);

struct safetensors;

/* Checks the header against itself and the size of the file: known types, lengths, no overlap, no gap, no
 * rest. A header above 64 MiB is refused. */
int safetensors_open(const char *path, struct safetensors **out);
void safetensors_close(struct safetensors **s); /* accepts NULL */
/* NULL if there is none. Views. */
const char *safetensors_metadata(const struct safetensors *s, const char *key);
const struct safetensor *safetensors_find(const struct safetensors *s, const char *name);
/* Finds a tensor that must have this type and these dims (shape[dims]); ERR_DATA with a sentence. */
int safetensors_expect(const struct safetensors *s, const char *name, enum safetensors_type type,
                       uint32_t dims, const uint64_t *shape, const struct safetensor **out);
/* Bytes [offset, offset + len) of a tensor. */
int safetensors_read(const struct safetensors *s, const struct safetensor *t, uint64_t offset, size_t len,
                     void *out);
/* Reads everything once: ERR_DATA if it is not the file that was written. *has_proof false: no self_xxh3 (a
 * file of another program), nothing was compared; NULL: that is ERR_DATA, too. */
int safetensors_verify(const struct safetensors *s, bool *has_proof);

#endif
