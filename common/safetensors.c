#include "common/safetensors.h"

#include "common/err.h"
#include "common/files.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#define MAX_HEADER   (64ull << 20)
#define PIECE        (1u << 20)
#define PROOF        "\"self_xxh3\":\""
#define PROOF_DIGITS 16

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are stored as they are in memory");

static const struct {
    const char *name;
    uint64_t size;
} types[] = {[TENSOR_F32] = {"F32", 4}, [TENSOR_U64] = {"U64", 8}, [TENSOR_U8] = {"U8", 1}};
#define NUM_TYPES (sizeof types / sizeof types[0])

struct safetensors {
    char *path;
    int fd;
    uint64_t head; /* bytes of length and header */
    uint64_t size; /* bytes of the file */
    char *text;    /* the header */
    json_t *json;
    struct safetensor *tensors;
    size_t count;
};

static bool tensor_bytes(const struct safetensor *t, uint64_t *out)
{
    uint64_t n = types[t->type].size;
    for (uint32_t i = 0; i < t->dims; i++)
        if (__builtin_mul_overflow(n, t->shape[i], &n)) return false;
    *out = n;
    return true;
}

/* The 16 digits after "self_xxh3":" in a header (no such bytes can be inside of a JSON string); NULL if there
 * are none. */
static char *find_proof(char *text)
{
    char *at = strstr(text, PROOF);
    return at && strlen(at) > strlen(PROOF) + PROOF_DIGITS ? at + strlen(PROOF) : NULL;
}

/* ------------------------------------------------------------------ writing */

struct writer {
    const char *path;
    char *head; /* length and header */
    size_t head_len;
    const struct safetensor *tensors;
    size_t count;
    uint64_t bytes;
    XXH3_state_t *hash;
};

static json_t *describe(const struct safetensor *t, uint64_t begin, uint64_t end)
{
    json_t *shape = json_array();
    for (uint32_t i = 0; i < t->dims; i++)
        json_array_append_new(shape, json_integer((json_int_t)t->shape[i]));
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", types[t->type].name, "shape", shape, "data_offsets",
                     (json_int_t)begin, (json_int_t)end);
}

/* The header as text, with a proof of zeros. */
static void build_head(struct writer *w, const struct safetensors_pair *metadata, size_t pairs)
{
    json_t *root = json_object(), *meta = json_object();
    for (size_t i = 0; i < pairs; i++) {
        int rc = json_object_set_new(meta, metadata[i].key, json_string(metadata[i].value));
        ASSERT(rc == 0); /* our own texts are UTF-8 */
    }
    json_object_set_new(meta, "self_xxh3", json_string("0000000000000000"));
    json_object_set_new(root, "__metadata__", meta);
    uint64_t at = 0;
    for (size_t i = 0; i < w->count; i++) {
        uint64_t bytes;
        ASSERT(tensor_bytes(&w->tensors[i], &bytes) && w->tensors[i].dims <= SAFETENSORS_DIMS);
        json_object_set_new(root, w->tensors[i].name, describe(&w->tensors[i], at, at + bytes));
        at += bytes;
    }
    char *text = json_dumps(root, JSON_COMPACT);
    ASSERT(text);
    uint64_t len = (strlen(text) + 7) / 8 * 8;
    w->head_len = 8 + len;
    w->head = xcalloc(1, w->head_len + 1);
    memcpy(w->head, &len, 8);
    memset(w->head + 8, ' ', len);
    memcpy(w->head + 8, text, strlen(text));
    w->bytes = w->head_len + at;
    free(text);
    json_decref(root);
}

/* Puts the hash of everything in the place of the zeros. */
static void prove(struct writer *w)
{
    char digits[PROOF_DIGITS + 1], *at = find_proof(w->head + 8);
    ASSERT(at);
    XXH3_64bits_reset(w->hash);
    XXH3_64bits_update(w->hash, w->head, w->head_len);
    for (size_t i = 0; i < w->count; i++) {
        uint64_t bytes = 0;
        tensor_bytes(&w->tensors[i], &bytes);
        if (bytes) XXH3_64bits_update(w->hash, w->tensors[i].data, bytes);
    }
    snprintf(digits, sizeof digits, "%016" PRIx64, (uint64_t)XXH3_64bits_digest(w->hash));
    memcpy(at, digits, PROOF_DIGITS);
}

/* Writes and hashes piece by piece, while the piece is in cache. */
static int put(struct writer *w, int fd, const char *data, uint64_t len)
{
    for (uint64_t at = 0; at < len; at += PIECE) {
        size_t n = len - at < PIECE ? (size_t)(len - at) : PIECE;
        XXH3_64bits_update(w->hash, data + at, n);
        int rc = files_write_all(fd, data + at, n, w->path);
        if (rc < 0) return rc;
    }
    return 0;
}

static int write_body(int fd, void *arg)
{
    struct writer *w = arg;
    XXH3_64bits_reset(w->hash);
    int rc = put(w, fd, w->head, w->head_len);
    for (size_t i = 0; rc == 0 && i < w->count; i++) {
        uint64_t bytes = 0;
        tensor_bytes(&w->tensors[i], &bytes);
        rc = put(w, fd, w->tensors[i].data, bytes);
    }
    return rc;
}

int safetensors_write(const char *path, const struct safetensors_pair *metadata, size_t pairs,
                      const struct safetensor *tensors, size_t count, uint64_t *bytes, uint64_t *hash)
{
    struct writer w = {.path = path, .tensors = tensors, .count = count, .hash = XXH3_createState()};
    ASSERT(w.hash);
    build_head(&w, metadata, pairs);
    prove(&w);
    int rc = files_write_with(path, write_body, &w);
    if (rc == 0 && bytes) *bytes = w.bytes;
    if (rc == 0 && hash) *hash = XXH3_64bits_digest(w.hash);
    XXH3_freeState(w.hash);
    free(w.head);
    return rc;
}

/* ------------------------------------------------------------------ reading */

static int damaged(const struct safetensors *s, const char *what)
{
    return err_set(ERR_DATA, "%s is damaged: %s", s->path, what);
}

static int read_at(const struct safetensors *s, uint64_t at, size_t len, void *out)
{
    char *to = out;
    while (len > 0) {
        ssize_t n = pread(s->fd, to, len, (off_t)at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return err_set(ERR_STORAGE, "cannot read %s: %s", s->path, strerror(errno));
        if (n == 0) return damaged(s, "it became shorter while it was read");
        to += n;
        at += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

static int read_head(struct safetensors *s)
{
    uint64_t len;
    if (s->size < 10) return damaged(s, "it is too short to be a safetensors file");
    int rc = read_at(s, 0, sizeof len, &len);
    if (rc < 0) return rc;
    if (len < 2 || len > MAX_HEADER || len > s->size - 8)
        return damaged(s, "the length of its header is not possible; or it is a file of another kind");
    s->head = 8 + len;
    s->text = xcalloc(1, len + 1);
    rc = read_at(s, 8, len, s->text);
    if (rc < 0) return rc;
    json_error_t why;
    s->json = json_loadb(s->text, len, JSON_REJECT_DUPLICATES, &why);
    if (!json_is_object(s->json)) return damaged(s, "its header is not a JSON object");
    return 0;
}

static bool get_number(const json_t *j, uint64_t *out)
{
    if (!json_is_integer(j) || json_integer_value(j) < 0) return false;
    *out = (uint64_t)json_integer_value(j);
    return true;
}

static const char *parse_tensor(const json_t *j, uint64_t body, struct safetensor *t)
{
    const char *type = json_string_value(json_object_get(j, "dtype"));
    const json_t *shape = json_object_get(j, "shape"), *offsets = json_object_get(j, "data_offsets");
    size_t k = 0;
    while (type && k < NUM_TYPES && strcmp(type, types[k].name) != 0) k++;
    if (!type || k == NUM_TYPES) return "a tensor is neither F32 nor U64 nor U8";
    t->type = (enum safetensors_type)k;
    if (!json_is_array(shape) || json_array_size(shape) > SAFETENSORS_DIMS)
        return "a tensor has no possible shape";
    t->dims = (uint32_t)json_array_size(shape);
    for (size_t i = 0; i < t->dims; i++)
        if (!get_number(json_array_get(shape, i), &t->shape[i])) return "a tensor has no possible shape";
    uint64_t begin, end;
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 ||
        !get_number(json_array_get(offsets, 0), &begin) || !get_number(json_array_get(offsets, 1), &end) ||
        begin > end || end > body)
        return "a tensor lies outside of the file";
    if (!tensor_bytes(t, &t->bytes) || t->bytes != end - begin)
        return "the shape of a tensor does not match its bytes";
    t->at = begin;
    return NULL;
}

static int by_place(const void *a, const void *b)
{
    const struct safetensor *x = a, *y = b;
    if (x->at != y->at) return (x->at > y->at) - (x->at < y->at);
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int parse_head(struct safetensors *s)
{
    const json_t *meta = json_object_get(s->json, "__metadata__");
    const char *key;
    json_t *value;
    if (meta && !json_is_object(meta)) return damaged(s, "its metadata is not a JSON object");
    s->tensors = xcalloc(json_object_size(s->json) + 1, sizeof *s->tensors);
    json_object_foreach(s->json, key, value)
    {
        if (value == meta) continue;
        struct safetensor *t = &s->tensors[s->count++];
        t->name = key;
        const char *wrong = parse_tensor(value, s->size - s->head, t);
        if (wrong) return damaged(s, wrong);
    }
    qsort(s->tensors, s->count, sizeof *s->tensors, by_place);
    uint64_t at = 0; /* no overlap and no gap: each begins where the last one ended */
    for (size_t i = 0; i < s->count; i++) {
        if (s->tensors[i].at != at) return damaged(s, "its tensors overlap or leave gaps");
        at += s->tensors[i].bytes;
        s->tensors[i].at += s->head;
    }
    if (at != s->size - s->head) return damaged(s, "its size is not what its header says");
    return 0;
}

static int open_file(struct safetensors *s)
{
    struct stat st;
    s->fd = open(s->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (s->fd < 0 || fstat(s->fd, &st) < 0)
        return err_set(ERR_STORAGE, "cannot open %s: %s", s->path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return err_set(ERR_STORAGE, "cannot read %s: it is not a file", s->path);
    s->size = (uint64_t)st.st_size;
    return 0;
}

int safetensors_open(const char *path, struct safetensors **out)
{
    struct safetensors *s = xcalloc(1, sizeof *s);
    s->path = xstrdup(path);
    int rc = open_file(s);
    if (rc == 0) rc = read_head(s);
    if (rc == 0) rc = parse_head(s);
    if (rc == 0)
        *out = s;
    else
        safetensors_close(&s);
    return rc;
}

void safetensors_close(struct safetensors **s)
{
    if (!*s) return;
    if ((*s)->fd >= 0) close((*s)->fd);
    json_decref((*s)->json);
    free((*s)->text);
    free((*s)->tensors);
    free((*s)->path);
    free(*s);
    *s = NULL;
}

const char *safetensors_metadata(const struct safetensors *s, const char *key)
{
    return json_string_value(json_object_get(json_object_get(s->json, "__metadata__"), key));
}

const struct safetensor *safetensors_find(const struct safetensors *s, const char *name)
{
    for (size_t i = 0; i < s->count; i++)
        if (strcmp(s->tensors[i].name, name) == 0) return &s->tensors[i];
    return NULL;
}

int safetensors_expect(const struct safetensors *s, const char *name, enum safetensors_type type,
                       uint32_t dims, const uint64_t *shape, const struct safetensor **out)
{
    const struct safetensor *t = safetensors_find(s, name);
    if (!t) return err_set(ERR_DATA, "%s has no tensor %s", s->path, name);
    bool same = t->type == type && t->dims == dims;
    for (uint32_t i = 0; same && i < dims; i++) same = t->shape[i] == shape[i];
    if (!same) return err_set(ERR_DATA, "%s: tensor %s does not have the expected shape", s->path, name);
    *out = t;
    return 0;
}

int safetensors_read(const struct safetensors *s, const struct safetensor *t, uint64_t offset, size_t len,
                     void *out)
{
    ASSERT(offset <= t->bytes && len <= t->bytes - offset);
    return read_at(s, t->at + offset, len, out);
}

static int hash_all(const struct safetensors *s, XXH3_state_t *hash)
{
    char *piece = xcalloc(1, PIECE);
    int rc = 0;
    for (uint64_t at = s->head; rc == 0 && at < s->size; at += PIECE) {
        size_t n = s->size - at < PIECE ? (size_t)(s->size - at) : PIECE;
        rc = read_at(s, at, n, piece);
        if (rc == 0) XXH3_64bits_update(hash, piece, n);
    }
    free(piece);
    return rc;
}

int safetensors_verify(const struct safetensors *s, bool *has_proof)
{
    uint64_t len = s->head - 8;
    char *text = xcalloc(1, len + 1), stored[PROOF_DIGITS + 1] = "", digits[PROOF_DIGITS + 1];
    memcpy(text, s->text, len);
    char *at = find_proof(text);
    if (has_proof) *has_proof = at != NULL;
    if (!at) {
        free(text);
        return has_proof ? 0 : damaged(s, "it does not carry its own hash");
    }
    memcpy(stored, at, PROOF_DIGITS);
    memset(at, '0', PROOF_DIGITS);
    XXH3_state_t *hash = XXH3_createState();
    ASSERT(hash);
    XXH3_64bits_reset(hash);
    XXH3_64bits_update(hash, &len, sizeof len);
    XXH3_64bits_update(hash, text, len);
    int rc = hash_all(s, hash);
    snprintf(digits, sizeof digits, "%016" PRIx64, (uint64_t)XXH3_64bits_digest(hash));
    if (rc == 0 && strcmp(digits, stored) != 0) rc = damaged(s, "its bytes do not match its own hash");
    XXH3_freeState(hash);
    free(text);
    return rc;
}
