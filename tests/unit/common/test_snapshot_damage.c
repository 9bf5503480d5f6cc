/* States on disk: whatever is damaged is found, and never crashes anything. */
#include "common/safetensors.h"
#include "tests/unit/common/snapshot_case.h"

static void a_damaged_set_is_passed_over(void **state)
{
    (void)state;
    struct rng r;
    static const char *const names[] = {"shard-00-of-02.safetensors", "shard-01-of-02.safetensors",
                                        "capsule-00.bin"};
    rng_init(&r, 5);
    write_set(1, 1, 0);
    write_set(2, 2, 1);
    assert_int_equal(snapshot_newest(run), 2);
    for (int i = 0; i < 60; i++) {
        char *path = file_of(2, names[i % 3]);
        long at = (long)rng_below(&r, (uint64_t)size_of(path));
        unsigned char with = (unsigned char)(1u << rng_below(&r, 8));
        flip(path, at, with);
        assert_int_equal(snapshot_newest(run), 1);
        flip(path, at, with);
        free(path);
    }
    assert_int_equal(snapshot_newest(run), 2);
    for (int i = 0; i < 3; i++) {
        write_set(2, 2, 1);
        char *path = file_of(2, names[i]);
        assert_int_equal(truncate(path, size_of(path) - 1), 0);
        assert_int_equal(snapshot_newest(run), 1);
        unlink(path);
        assert_int_equal(snapshot_newest(run), 1);
        free(path);
    }
}

static void a_set_without_a_manifest_does_not_count(void **state)
{
    (void)state;
    struct snapshot_file file;
    write_set(4, 1, 0);
    assert_int_equal(snapshot_write_shard(run, 5, 0, 1, &facts, whole, &file), 0);
    assert_int_equal(snapshot_newest(run), 4);
    char *path = file_of(6, "manifest.json"), *dir = file_of(6, "");
    assert_int_equal(files_make_dirs(dir), 0);
    for (const char *const *bad = (const char *const[]){"", "{", "[]", "{\"set\":6}", NULL}; *bad; bad++) {
        assert_int_equal(files_write_atomic(path, *bad, strlen(*bad)), 0);
        assert_int_equal(snapshot_newest(run), 4);
    }
    free(path);
    free(dir);
}

/* whatever byte of a shard file is wrong, its own hash or its header tells, without a crash */
static void a_garbled_shard_file_is_refused(void **state)
{
    (void)state;
    struct rng r;
    struct shard_state *s;
    struct manifest m;
    uint64_t seed = (uint64_t)getpid();
    printf("seed %llu\n", (unsigned long long)seed);
    rng_init(&r, seed);
    write_set(1, 1, 0);
    assert_int_equal(snapshot_read_manifest(run, 1, &m), 0);
    char *path = file_of(1, m.files[0].name);
    for (int i = 0; i < 400; i++) {
        /* most of them in the header */
        long at = (long)rng_below(&r, i % 4 ? 1200 : (uint64_t)size_of(path));
        unsigned char with = (unsigned char)(1 + rng_below(&r, 255));
        flip(path, at, with);
        int rc = snapshot_read_blocks(run, &m, &facts, 0, cut.count, &s);
        assert_true(rc == ERR_DATA || rc == ERR_MODEL);
        flip(path, at, with);
    }
    assert_int_equal(snapshot_read_blocks(run, &m, &facts, 0, cut.count, &s), 0);
    shard_state_free(&s);
    for (long len = size_of(path) - 1; len > 0; len = len * 2 / 3) {
        assert_int_equal(truncate(path, len), 0);
        assert_int_equal(snapshot_read_blocks(run, &m, &facts, 0, cut.count, &s), ERR_DATA);
    }
    manifest_fini(&m);
    free(path);
}

static void write_raw(const char *path, const char *header, size_t body)
{
    uint64_t len = strlen(header);
    char *bytes = xcalloc(1, 8 + len + body);
    memcpy(bytes, &len, 8);
    memcpy(bytes + 8, header, len);
    assert_int_equal(files_write_atomic(path, bytes, 8 + len + body), 0);
    free(bytes);
}

static void a_header_that_lies_is_refused(void **state)
{
    (void)state;
    static const char *const headers[] = {
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", /* then 8 bytes nobody owns */
        ("{\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}"),
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[-4],\"data_offsets\":[0,16]}}",
        "{\"a\":{\"dtype\":\"F64\",\"shape\":[2],\"data_offsets\":[0,16]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387905,4,4],\"data_offsets\":[0,16]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[16,0]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,99999999999]}}",
        "{\"a\":7}",
        "{\"__metadata__\":[1]}",
        "[]",
        "{",
    };
    char *path = files_join(run, "final.safetensors");
    struct facts f;
    float *params;
    for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++) {
        write_raw(path, headers[i], 16);
        assert_int_equal(snapshot_load_model(path, &f, &params), ERR_DATA);
        assert_non_null(strstr(err_text(), "damaged"));
    }
    uint64_t huge[2] = {UINT64_MAX, 0};
    assert_int_equal(files_write_atomic(path, huge, sizeof huge), 0);
    assert_int_equal(snapshot_load_model(path, &f, &params), ERR_DATA);
    assert_int_equal(files_write_atomic(path, "short", 5), 0);
    assert_int_equal(snapshot_load_model(path, &f, &params), ERR_DATA);
    free(path);
}

/* Writes a shard file anew, whole and with the right hash of its own, with `square` added. */
static void add_tensor(const char *path, const struct safetensor *square)
{
    static const char *const keys[] = {"format", "job",   "model_hash", "set",    "shard",
                                       "shards", "first", "count",      "params", "block_size"};
    static const char *const names[] = {"versions", "frames",   "members", "last_seq",
                                        "weights",  "momentum", "verdicts"};
    struct safetensors *file;
    struct safetensors_pair pairs[10];
    struct safetensor tensors[8];
    assert_int_equal(safetensors_open(path, &file), 0);
    for (int i = 0; i < 10; i++)
        pairs[i] = (struct safetensors_pair){keys[i], safetensors_metadata(file, keys[i])};
    for (int i = 0; i < 7; i++) {
        tensors[i] = *safetensors_find(file, names[i]);
        void *data = xcalloc(1, tensors[i].bytes);
        assert_int_equal(safetensors_read(file, &tensors[i], 0, tensors[i].bytes, data), 0);
        tensors[i].data = data;
    }
    tensors[7] = *square;
    assert_int_equal(safetensors_write(path, pairs, 10, tensors, 8, NULL, NULL), 0);
    for (int i = 0; i < 7; i++) free((void *)tensors[i].data);
    safetensors_close(&file);
}

/* the file proves itself, so only the check of the slot can tell */
static void a_slot_of_another_shape_is_refused(void **state)
{
    (void)state;
    uint64_t p = cut.params;
    void *data = xcalloc(p, 8);
    const struct safetensor wrong[] = {
        {"square", TENSOR_F32, 1, {p - 1}, data, 0, 0},
        {"square", TENSOR_F32, 2, {1, p}, data, 0, 0},
        {"square", TENSOR_U64, 1, {p}, data, 0, 0},
    };
    const struct safetensor right = {"square", TENSOR_F32, 1, {p}, data, 0, 0};
    struct manifest m;
    struct shard_state *s;
    uint32_t set;
    for (int i = 0; i <= 3; i++) {
        write_set(1, 1, 0);
        assert_int_equal(snapshot_read_manifest(run, 1, &m), 0);
        char *path = file_of(1, m.files[0].name);
        add_tensor(path, i < 3 ? &wrong[i] : &right);
        int expected = i < 3 ? ERR_DATA : 0;
        assert_int_equal(snapshot_read_blocks(run, &m, &facts, 0, cut.count, &s), expected);
        if (i < 3) assert_non_null(strstr(err_text(), "square"));
        if (i == 3) shard_state_free(&s);
        assert_int_equal(snapshot_read_own(run, &facts, 0, 1, &set, &s), expected);
        if (i == 3) shard_state_free(&s);
        manifest_fini(&m);
        free(path);
    }
    free(data);
}

static void another_job_or_model_is_refused(void **state)
{
    (void)state;
    struct manifest m;
    struct shard_state *s;
    write_set(1, 1, 0);
    assert_int_equal(snapshot_read_manifest(run, 1, &m), 0);
    facts.job++;
    assert_int_equal(snapshot_read_blocks(run, &m, &facts, 0, 1, &s), ERR_MODEL);
    m.job++; /* the manifest agrees, the file does not */
    assert_int_equal(snapshot_read_blocks(run, &m, &facts, 0, 1, &s), ERR_MODEL);
    m.files[0].count--; /* a set with a hole */
    assert_int_equal(snapshot_read_blocks(run, &m, &facts, 0, cut.count, &s), ERR_DATA);
    manifest_fini(&m);
}

int main(void)
{
#define RULE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        RULE(a_damaged_set_is_passed_over),       RULE(a_set_without_a_manifest_does_not_count),
        RULE(a_garbled_shard_file_is_refused),    RULE(a_header_that_lies_is_refused),
        RULE(a_slot_of_another_shape_is_refused), RULE(another_job_or_model_is_refused),
    };
    log_set_stderr(LOG_NONE);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
