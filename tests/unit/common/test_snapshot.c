/* States on disk: what was written comes back, whatever the cut; what fails leaves the old. */
#include "tests/unit/common/snapshot_case.h"

/* ------------------------------------------------------------------ round trips */

static void facts_come_back_as_they_were(void **state)
{
    (void)state;
    struct facts f;
    assert_int_equal(facts_read(run, &f), 0);
    assert_true(f.job == facts.job && f.model_hash == facts.model_hash);
    assert_memory_equal(&f.model.spec, &facts.model.spec, sizeof f.model.spec);
    assert_memory_equal(f.mean, facts.mean, 10 * sizeof(float));
    assert_memory_equal(f.scale, facts.scale, 10 * sizeof(float));
    assert_false(f.speaker_cmvn);
    assert_true(f.cmvn_var);
    assert_true(f.train.frames == 70000 && f.train.hash == UINT64_MAX && f.dev.utterances == 2);
    assert_int_equal(f.num_silence, 2);
    assert_int_equal(f.silence[1], 59);
    facts_fini(&f);
}

static void facts_without_normalisation_come_back_without(void **state)
{
    (void)state;
    struct facts f;
    free(facts.mean);
    free(facts.scale);
    facts.mean = facts.scale = NULL;
    facts.num_silence = 0;
    facts.model_hash = model_hash(&facts.model, NULL, NULL);
    assert_int_equal(facts_write(run, &facts), 0);
    assert_int_equal(facts_read(run, &f), 0);
    assert_null(f.mean);
    assert_int_equal(f.num_silence, 0);
    facts_fini(&f);
}

/* n servers read what m servers wrote: every range, also that of a shard without blocks */
static void a_set_of_m_files_is_read_by_n_servers(void **state)
{
    (void)state;
    for (uint32_t m = 1; m <= cut.count + 2; m += 2) {
        write_set(m, m, 0);
        struct manifest set;
        assert_int_equal(snapshot_read_manifest(run, m, &set), 0);
        for (uint32_t n = 1; n <= cut.count + 2; n++)
            for (uint32_t k = 0; k < n; k++) {
                uint32_t first, count;
                blocks_of_shard(&cut, n, k, &first, &count);
                struct shard_state *s, *expected = part(first, count, 0);
                assert_int_equal(snapshot_read_blocks(run, &set, &facts, first, count, &s), 0);
                if (count) assert_equal_states(s, expected);
                shard_state_free(&s);
                shard_state_free(&expected);
            }
        manifest_fini(&set);
    }
}

/* a member that had said HELLO to one shard only has zeros in the blocks of the other */
static void members_of_all_files_are_merged(void **state)
{
    (void)state;
    struct manifest m = {.set = 1, .job = facts.job, .model_hash = facts.model_hash, .num_files = 2};
    m.files = xcalloc(2, sizeof *m.files);
    struct shard_state *a = part(0, 2, 0), *b = part(2, cut.count - 2, 1), *s;
    assert_int_equal(snapshot_write_shard(run, 1, 0, 2, &facts, a, &m.files[0]), 0);
    assert_int_equal(snapshot_write_shard(run, 1, 1, 2, &facts, b, &m.files[1]), 0);
    assert_int_equal(snapshot_read_blocks(run, &m, &facts, 0, cut.count, &s), 0);
    assert_int_equal(s->num_members, 3);
    assert_true(s->last_seq[1] == whole->last_seq[1]);
    assert_true(s->last_seq[2] == 0 && s->verdict[2] == 0);
    assert_true(s->last_seq[cut.count + 2] == whole->last_seq[cut.count + 2]);
    shard_state_free(&s);
    shard_state_free(&a);
    shard_state_free(&b);
    manifest_fini(&m);
}

/* no slot, either one, both: what is there comes back, what is not there is not in the file */
static void a_state_comes_back_with_the_slots_that_it_has(void **state)
{
    (void)state;
    uint64_t bytes[1u << SHARD_SLOTS];
    for (unsigned slots = 0; slots < 1u << SHARD_SLOTS; slots++) {
        struct manifest m;
        shard_state_set_slots(whole, slots);
        fill_state(whole);
        write_set(slots, 3, 0);
        assert_int_equal(snapshot_read_manifest(run, slots, &m), 0);
        bytes[slots] = m.files[0].bytes + m.files[1].bytes + m.files[2].bytes;
        for (uint32_t k = 0; k < 2; k++) { /* by two servers */
            uint32_t first, count;
            blocks_of_shard(&cut, 2, k, &first, &count);
            struct shard_state *s, *expected = part(first, count, 0);
            assert_int_equal(snapshot_read_blocks(run, &m, &facts, first, count, &s), 0);
            assert_equal_states(s, expected);
            assert_int_equal(shard_state_slots(s), slots);
            shard_state_free(&s);
            shard_state_free(&expected);
        }
        manifest_fini(&m);
    }
    size_t vector = cut.params * sizeof(float);
    assert_in_range(bytes[1] - bytes[0], vector, vector + 1000);
    assert_in_range(bytes[3] - bytes[0], 2 * vector, 2 * vector + 1000);
}

/* a set whose servers were of two minds: the union, zero where a file had nothing */
static void slots_of_all_files_are_merged(void **state)
{
    (void)state;
    struct manifest m = {.set = 1, .job = facts.job, .model_hash = facts.model_hash, .num_files = 2};
    m.files = xcalloc(2, sizeof *m.files);
    struct shard_state *a = part(0, 2, 0), *b = part(2, cut.count - 2, 0), *s;
    shard_state_set_slots(b, 1u << SLOT_SQUARE);
    fill_state(b);
    assert_int_equal(snapshot_write_shard(run, 1, 0, 2, &facts, a, &m.files[0]), 0);
    assert_int_equal(snapshot_write_shard(run, 1, 1, 2, &facts, b, &m.files[1]), 0);
    assert_int_equal(snapshot_read_blocks(run, &m, &facts, 0, cut.count, &s), 0);
    size_t begin = blocks_offset(&cut, 2), rest = cut.params - begin;
    float *zeros = xcalloc(cut.params, sizeof *zeros);
    assert_int_equal(shard_state_slots(s), 1u << SLOT_MOMENTUM | 1u << SLOT_SQUARE);
    assert_memory_equal(s->slot[SLOT_MOMENTUM], a->slot[SLOT_MOMENTUM], begin * sizeof(float));
    assert_memory_equal(s->slot[SLOT_MOMENTUM] + begin, zeros, rest * sizeof(float));
    assert_memory_equal(s->slot[SLOT_SQUARE], zeros, begin * sizeof(float));
    assert_memory_equal(s->slot[SLOT_SQUARE] + begin, b->slot[SLOT_SQUARE], rest * sizeof(float));
    free(zeros);
    shard_state_free(&s);
    shard_state_free(&a);
    shard_state_free(&b);
    manifest_fini(&m);
}

static void setting_slots_keeps_adds_zeros_and_frees(void **state)
{
    (void)state;
    struct shard_state *before = part(0, cut.count, 0);
    size_t bytes = cut.params * sizeof(float);
    float *zeros = xcalloc(1, bytes);
    shard_state_set_slots(whole, 1u << SLOT_MOMENTUM | 1u << SLOT_SQUARE);
    assert_memory_equal(whole->slot[SLOT_MOMENTUM], before->slot[SLOT_MOMENTUM], bytes);
    assert_memory_equal(whole->slot[SLOT_SQUARE], zeros, bytes);
    whole->slot[SLOT_SQUARE][7] = 3;
    shard_state_set_slots(whole, 1u << SLOT_SQUARE);
    assert_null(whole->slot[SLOT_MOMENTUM]);
    assert_true(whole->slot[SLOT_SQUARE][7] == 3);
    shard_state_set_slots(whole, 1u << SLOT_MOMENTUM); /* what was freed is gone */
    assert_null(whole->slot[SLOT_SQUARE]);
    assert_memory_equal(whole->slot[SLOT_MOMENTUM], zeros, bytes);
    shard_state_set_slots(whole, 0);
    assert_int_equal(shard_state_slots(whole), 0);
    free(zeros);
    shard_state_free(&before);
}

static void a_manifest_comes_back_as_it_was(void **state)
{
    (void)state;
    struct manifest m;
    char *data;
    size_t len;
    write_set(12, 2, 2);
    assert_int_equal(snapshot_read_manifest(run, 12, &m), 0);
    assert_int_equal(m.set, 12);
    assert_int_equal(m.epoch, 13);
    assert_true(m.done == 0.25 && m.exact && !m.final && m.wall == 1700000000);
    assert_true(m.job == facts.job && m.model_hash == facts.model_hash);
    assert_int_equal(m.num_files, 2);
    assert_string_equal(m.files[1].name, "shard-01-of-02.safetensors");
    assert_int_equal(m.files[1].first, m.files[0].count);
    assert_string_equal(m.state, "{\"row\":\"job\"}\n{\"row\":\"lease\"}\n");
    assert_int_equal(snapshot_read_capsule(run, &m, 1, &data, &len), 0);
    assert_int_equal(len, 7);
    assert_memory_equal(data, "capsule", 7);
    free(data);
    assert_int_equal(snapshot_read_capsule(run, &m, 2, &data, &len), ERR_DATA);
    char *path = file_of(12, "capsule-01.bin");
    flip(path, 3, 1);
    assert_int_equal(snapshot_read_capsule(run, &m, 1, &data, &len), ERR_DATA);
    free(path);
    manifest_fini(&m);
}

static void an_exported_model_loads_to_the_same_vector(void **state)
{
    (void)state;
    struct facts f;
    float *params;
    char *path = files_join(run, "final.safetensors");
    write_set(3, 2, 0);
    assert_int_equal(snapshot_load_model(run, &f, &params), 0); /* out of the set */
    assert_memory_equal(params, whole->weights, facts.model.params * sizeof(float));
    free(params);
    facts_fini(&f);
    assert_int_equal(snapshot_export(run, 3, path), 0);
    flip(path, size_of(path) - 1, 1);
    assert_int_equal(snapshot_load_model(run, &f, &params), ERR_DATA);
    flip(path, size_of(path) - 1, 1);
    assert_int_equal(snapshot_load_model(run, &f, &params), 0); /* out of final.safetensors */
    assert_memory_equal(params, whole->weights, facts.model.params * sizeof(float));
    assert_true((uintptr_t)params % 64 == 0);
    assert_true(f.model_hash == facts.model_hash && f.job == facts.job);
    free(params);
    facts_fini(&f);
    assert_int_equal(snapshot_load_model(path, &f, &params), 0);
    free(params);
    facts_fini(&f);
    free(path);
}

static void a_run_without_anything_says_so(void **state)
{
    (void)state;
    struct facts f;
    float *params;
    assert_int_equal(snapshot_newest(run), -1);
    assert_int_equal(snapshot_load_model(run, &f, &params), ERR_USAGE);
    assert_non_null(strstr(err_text(), "no model yet"));
}

/* ------------------------------------------------------------------ one shard alone */

static void a_fallen_server_takes_its_newest_whole_file(void **state)
{
    (void)state;
    uint32_t first, count, set = 77;
    struct snapshot_file file;
    struct shard_state *s;
    write_set(1, 2, 0);
    write_set(2, 3, 0); /* another number of servers */
    blocks_of_shard(&cut, 2, 1, &first, &count);
    struct shard_state *own = part(first, count, 0);
    own->version[0] = 42;
    assert_int_equal(snapshot_write_shard(run, 3, 1, 2, &facts, own, &file), 0); /* incomplete */
    assert_int_equal(snapshot_read_own(run, &facts, 1, 2, &set, &s), 0);
    assert_int_equal(set, 3);
    assert_equal_states(s, own);
    shard_state_free(&s);
    char *path = file_of(3, file.name);
    flip(path, size_of(path) / 2, 4);
    assert_int_equal(snapshot_read_own(run, &facts, 1, 2, &set, &s), 0);
    assert_int_equal(set, 1);
    assert_true(s->version[0] == whole->version[first]);
    shard_state_free(&s);
    flip(path, size_of(path) / 2, 4);
    snapshot_set_aside(run, 2, 1, 2); /* the job went back to set 2 */
    assert_int_equal(snapshot_read_own(run, &facts, 1, 2, &set, &s), 0);
    assert_int_equal(set, 1);
    shard_state_free(&s);
    assert_int_equal(snapshot_read_own(run, &facts, 3, 4, &set, &s), ERR_DATA);
    free(path);
    shard_state_free(&own);
}

static bool has_set(uint32_t set)
{
    char *dir = file_of(set, "");
    bool has = files_is_dir(dir);
    free(dir);
    return has;
}

/* whole or not, newest first; other names are nobody's business */
static void sets_are_listed_by_their_names(void **state)
{
    (void)state;
    static const uint32_t expected[] = {UINT32_MAX, 1000000, 999999, 10, 2};
    static const char *const others[] = {"set-7",  "set-0000008", "set-000009.old", "set-", "set--00003",
                                         "set- 5", "set-+00006",  "set-4294967296", "notes"};
    size_t n;
    uint32_t *sets = snapshot_list_sets(run, &n);
    assert_non_null(sets); /* no folder yet: none, which is no error */
    assert_int_equal(n, 0);
    free(sets);
    for (size_t i = 5; i-- > 0;) {
        char *dir = snapshot_set_dir(run, expected[i]);
        assert_int_equal(files_make_dirs(dir), 0);
        free(dir);
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        char *dir = xprintf("%s/checkpoints/%s", run, others[i]);
        assert_int_equal(files_make_dirs(dir), 0);
        free(dir);
    }
    sets = snapshot_list_sets(run, &n);
    assert_int_equal(n, 5);
    assert_memory_equal(sets, expected, sizeof expected);
    free(sets);
}

static void pruning_keeps_the_newest_complete_sets(void **state)
{
    (void)state;
    struct snapshot_file file;
    for (uint32_t set = 1; set <= 6; set++)
        if (set == 2 || set == 5)
            assert_int_equal(snapshot_write_shard(run, set, 0, 1, &facts, whole, &file), 0);
        else
            write_set(set, 1, 0);
    assert_int_equal(snapshot_write_shard(run, 7, 0, 1, &facts, whole, &file), 0); /* being written */
    snapshot_prune(run, 3);
    assert_true(has_set(7) && has_set(6) && has_set(5) && has_set(4) && has_set(3));
    assert_false(has_set(2) || has_set(1));
    char *path = file_of(6, "shard-00-of-01.safetensors");
    assert_int_equal(truncate(path, 100), 0);
    snapshot_prune(run, 0);
    assert_true(has_set(4));
    assert_false(has_set(3));
    assert_int_equal(snapshot_newest(run), 4);
    free(path);
}

/* ------------------------------------------------------------------ writes that fail */

static void a_full_disk_keeps_the_old_file(void **state)
{
    (void)state;
    struct snapshot_file file, old;
    struct rlimit limit, small;
    assert_int_equal(snapshot_write_shard(run, 1, 0, 1, &facts, whole, &old), 0);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    small = limit;
    small.rlim_cur = 20000; /* bytes: far less than the file has */
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    file = (struct snapshot_file){.bytes = 17};
    int rc = snapshot_write_shard(run, 1, 0, 1, &facts, whole, &file);
    setrlimit(RLIMIT_FSIZE, &limit);
    assert_int_equal(rc, ERR_STORAGE);
    assert_int_equal(file.bytes, 17); /* outputs on success alone */
    char *path = file_of(1, old.name);
    assert_int_equal(size_of(path), (long)old.bytes);
    free(path);
    uint32_t set;
    struct shard_state *s;
    assert_int_equal(snapshot_read_own(run, &facts, 0, 1, &set, &s), 0);
    shard_state_free(&s);
}

static void a_place_that_takes_no_files_is_an_error(void **state)
{
    (void)state;
    struct snapshot_file file;
    char *path = files_join(run, "checkpoints");
    assert_int_equal(files_write_atomic(path, "a file", 6), 0);
    assert_int_equal(snapshot_write_shard(run, 1, 0, 1, &facts, whole, &file), ERR_STORAGE);
    assert_int_equal(snapshot_write_capsule(run, 1, 0, "c", 1, &file), ERR_STORAGE);
    size_t n = 1;
    assert_null(snapshot_list_sets(run, &n));
    assert_int_equal(n, 0);
    assert_non_null(strstr(err_text(), "cannot list"));
    free(path);
}

int main(void)
{
#define RULE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        RULE(facts_come_back_as_they_were),
        RULE(facts_without_normalisation_come_back_without),
        RULE(a_set_of_m_files_is_read_by_n_servers),
        RULE(members_of_all_files_are_merged),
        RULE(a_state_comes_back_with_the_slots_that_it_has),
        RULE(slots_of_all_files_are_merged),
        RULE(setting_slots_keeps_adds_zeros_and_frees),
        RULE(a_manifest_comes_back_as_it_was),
        RULE(an_exported_model_loads_to_the_same_vector),
        RULE(a_run_without_anything_says_so),
        RULE(a_fallen_server_takes_its_newest_whole_file),
        RULE(sets_are_listed_by_their_names),
        RULE(pruning_keeps_the_newest_complete_sets),
        RULE(a_full_disk_keeps_the_old_file),
        RULE(a_place_that_takes_no_files_is_an_error),
    };
    log_set_stderr(LOG_NONE);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
