/* A data directory: the join, and every bad input counted, named and skipped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker/data_dir.h"
#include "worker/data/corpus.h"
#include "worker/data/utterance.h"

static struct data_dir dir;
static const size_t frames[4] = {10, 12, 8, 9};

static int set_up(void **state)
{
    (void)state;
    data_dir_make(&dir);
    data_dir_corpus(&dir, 4, frames, 3);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    data_dir_remove(&dir);
    return 0;
}

static struct corpus *open_with(const char *targets, struct corpus_options o)
{
    struct corpus *c = NULL;
    o.allow_empty = true;
    assert_int_equal(corpus_open(dir.path, targets, &o, &c), 0);
    return c;
}

static char *slurp(const char *name)
{
    char *text;
    assert_int_equal(files_read(data_dir_file(&dir, name), 1 << 20, &text, NULL), 0);
    return text;
}

/* Replaces the first `from` of a text file by `to`. */
static void edit(const char *name, const char *from, const char *to)
{
    char *text = slurp(name), *at = strstr(text, from);
    assert_non_null(at);
    *at = 0;
    data_dir_print(&dir, name, "%s%s%s", text, to, at + strlen(from));
    free(text);
}

/* Scans, and holds the report against: n problems of this kind, nothing else, usable utterances, a sentence.
 */
static void expect(const struct corpus *c, enum corpus_problem kind, uint64_t n, uint64_t usable,
                   const char *part)
{
    static struct corpus_report r;
    corpus_scan(c, &r);
    if (corpus_report_total(&r) != n || r.count[kind] != n)
        for (int k = 0; k < CORPUS_PROBLEMS; k++)
            if (r.count[k])
                print_message("%s: %d, %s\n", corpus_problem_name((enum corpus_problem)k), (int)r.count[k],
                              r.example[k][0]);
    assert_int_equal(corpus_report_total(&r), n);
    assert_int_equal(r.count[kind], n);
    assert_int_equal(r.usable, usable);
    if (part && !strstr(r.example[kind][0], part)) fail_msg("'%s' is not in '%s'", part, r.example[kind][0]);
}

static void test_a_clean_directory_is_joined_by_id(void **state)
{
    (void)state;
    struct corpus *c = open_with("ali.scp", CORPUS_OPTIONS_DEFAULT);
    expect(c, 0, 0, 4, NULL);
    assert_int_equal(corpus_count(c), 4);
    assert_int_equal(corpus_dim(c), 3);
    assert_int_equal(corpus_num_targets(c), 7);
    assert_int_equal(corpus_frames(c), 39);
    for (size_t i = 0; i < 4; i++) {
        const struct corpus_utterance *u = corpus_utterance(c, i);
        assert_int_equal(u->frames, frames[i]);
        assert_int_equal(u->line, i + 1);
        for (size_t t = 0; t < u->frames; t++) assert_int_equal(u->targets[t], (i + t) % 7);
    }
    assert_string_equal(corpus_utterance(c, 2)->id, "utt-02");
    corpus_free(&c);
    assert_null(c);
}

static void test_the_hash_depends_on_ids_and_frame_counts_alone(void **state)
{
    (void)state;
    struct corpus *a = open_with("ali.scp", CORPUS_OPTIONS_DEFAULT),
                  *b = open_with(NULL, CORPUS_OPTIONS_DEFAULT);
    assert_true(corpus_hash(a) == corpus_hash(b));
    assert_null(corpus_utterance(b, 0)->targets);
    assert_int_equal(corpus_num_targets(b), 0);
    corpus_free(&b);
    edit("feats.scp", "utt-01", "utt-0x");
    b = open_with(NULL, CORPUS_OPTIONS_DEFAULT);
    assert_true(corpus_hash(a) != corpus_hash(b));
    corpus_free(&a);
    corpus_free(&b);
}

static void test_a_missing_alignment_is_counted_and_skipped(void **state)
{
    (void)state;
    edit("ali.scp", "utt-01", "utt-0other");
    struct corpus *c = open_with("ali.scp", CORPUS_OPTIONS_DEFAULT);
    const struct corpus_report *r = corpus_report(c);
    assert_int_equal(r->unwanted, 1);
    assert_int_equal(r->count[CORPUS_MISSING_ALIGNMENT], 1);
    assert_non_null(
        strstr(r->example[CORPUS_MISSING_ALIGNMENT][0], "feats.scp line 2: utt-01 has no alignment"));
    assert_int_equal(corpus_count(c), 3);
    assert_string_equal(corpus_utterance(c, 1)->id, "utt-02");
    corpus_free(&c);
}

static void test_a_length_difference_is_cut_within_the_tolerance_and_skipped_beyond(void **state)
{
    (void)state;
    data_dir_print(
        &dir, "ali.txt",
        "utt-00 1 1 1 1 1\nutt-01 1 1 1 1 1 1\nutt-02 2 2 2 2 2 2 2 2 2 2\nutt-03 3 3 3 3 3 3 3 3 3\n");
    char spec[600];
    snprintf(spec, sizeof spec, "ark,t:%s", data_dir_file(&dir, "ali.txt"));
    struct corpus *c = open_with(spec, CORPUS_OPTIONS_DEFAULT); /* apart: 5, 6, 2, 0 */
    expect(c, CORPUS_LENGTH, 1, 3, "feats.scp line 2: utt-01 has 12 frames but 6 targets (tolerance 5)");
    assert_int_equal(corpus_utterance(c, 0)->frames, 5);
    assert_int_equal(corpus_utterance(c, 1)->frames, 8);
    assert_int_equal(corpus_report(c)->cut, 2);
    corpus_free(&c);
    c = open_with(spec, (struct corpus_options){.length_tolerance = 0});
    expect(c, CORPUS_LENGTH, 3, 1, "utt-00");
    corpus_free(&c);
}

static void test_nan_and_infinite_features_are_found_by_the_scan_and_refused_when_loaded(void **state)
{
    (void)state;
    char *bytes;
    size_t n;
    const uint32_t infinity = 0x7f800000, nan = 0x7fc00000;
    assert_int_equal(files_read(data_dir_file(&dir, "feats.ark"), 1 << 20, &bytes, &n), 0);
    /* an entry is key 7 bytes, header 15, rows x 3 floats: last value of the first, first value of the second
     */
    memcpy(bytes + 7 + 15 + 29 * 4, &infinity, 4);
    memcpy(bytes + 2 * (7 + 15) + 30 * 4, &nan, 4);
    data_dir_put(&dir, "feats.ark", bytes, n);
    free(bytes);
    struct corpus *c = open_with("ali.scp", CORPUS_OPTIONS_DEFAULT);
    assert_int_equal(corpus_count(c), 4);
    expect(c, CORPUS_NONFINITE, 2, 2, "feats.scp line 1: utt-00: value inf at frame 9, dimension 2");
    struct frontend f = {.dim = 3};
    struct utterance *u = utterance_new();
    assert_int_equal(utterance_load(c, 0, &f, u), ERR_DATA);
    assert_int_equal(u->frames, 0);
    assert_int_equal(utterance_load(c, 1, &f, u), ERR_DATA);
    assert_int_equal(utterance_load(c, 2, &f, u), 0);
    assert_int_equal(u->frames, 8);
    utterance_free(&u);
    corpus_free(&c);
}

static void test_a_wrong_dimension_is_named(void **state)
{
    (void)state;
    data_dir_print(&dir, "other.ark", "utt-02  [\n 1 2\n 3 4\n 1 2\n 3 4\n 1 2\n 3 4\n 1 2\n 3 4 ]\n");
    char *text = slurp("feats.scp");
    char *line = strstr(text, "utt-02"), *rest = strchr(line, '\n');
    *line = 0;
    data_dir_print(&dir, "feats.scp", "%sutt-02 other.ark:7%s", text, rest);
    free(text);
    struct corpus *c = open_with("ali.scp", CORPUS_OPTIONS_DEFAULT);
    expect(c, CORPUS_DIMENSION, 1, 3, "feats.scp line 3: utt-02 has dimension 2, not 3");
    corpus_free(&c);
    data_dir_print(&dir, "utt2num_frames",
                   "utt-00 10\nutt-01 12\nutt-02 8\nutt-03 9\n"); /* then only reading shows it */
    c = open_with("ali.scp", CORPUS_OPTIONS_DEFAULT);
    assert_int_equal(corpus_count(c), 4);
    expect(c, CORPUS_DIMENSION, 1, 3, "feats.scp line 3: utt-02: dimension 2, not 3");
    corpus_free(&c);
    c = open_with("ali.scp", (struct corpus_options){.length_tolerance = 5, .dim = 40});
    expect(c, CORPUS_DIMENSION, 4, 0, "dimension 3, not 40");
    struct frontend f = {.dim = 41};
    struct utterance *u = utterance_new();
    assert_int_equal(utterance_load(c, 0, &f, u), ERR_MODEL);
    utterance_free(&u);
    corpus_free(&c);
}

static void test_unsorted_and_duplicate_ids_are_named(void **state)
{
    (void)state;
    char *text = slurp("feats.scp"), *second = strchr(text, '\n') + 1;
    second[-1] = 0;
    data_dir_print(&dir, "feats.scp", "%s%s\n%s\n", second, text, text); /* 01 02 03 00 00 */
    free(text);
    struct corpus *c = open_with("ali.scp", CORPUS_OPTIONS_DEFAULT);
    const struct corpus_report *r = corpus_report(c);
    assert_int_equal(r->count[CORPUS_UNSORTED], 1);
    assert_int_equal(r->count[CORPUS_DUPLICATE], 1);
    assert_non_null(strstr(r->example[CORPUS_UNSORTED][0], "feats.scp line 4: id utt-00 comes after utt-03"));
    assert_non_null(
        strstr(r->example[CORPUS_DUPLICATE][0], "feats.scp line 5: id utt-00 is in line 4 already"));
    assert_int_equal(corpus_report_total(r), 2);
    assert_int_equal(corpus_count(c), 4);
    assert_string_equal(corpus_utterance(c, 3)->id, "utt-00"); /* file order */
    assert_int_equal(corpus_utterance(c, 3)->targets[1], 1);
    corpus_free(&c);
}

static void test_truncated_archives_are_named_with_file_and_offset(void **state)
{
    (void)state;
    char *bytes;
    size_t n;
    assert_int_equal(files_read(data_dir_file(&dir, "feats.ark"), 1 << 20, &bytes, &n), 0);
    data_dir_put(&dir, "feats.ark", bytes, n - 1);
    free(bytes);
    struct corpus *c = open_with("ali.scp", CORPUS_OPTIONS_DEFAULT);
    expect(c, CORPUS_UNREADABLE, 1, 3, "utt-03: ");
    assert_non_null(strstr(corpus_report(c)->example[CORPUS_UNREADABLE][0], "feats.ark at offset"));
    assert_int_equal(corpus_count(c), 3);
    corpus_free(&c);
    assert_int_equal(files_read(data_dir_file(&dir, "ali.ark"), 1 << 20, &bytes, &n), 0);
    data_dir_corpus(&dir, 4, frames, 3);
    data_dir_put(&dir, "ali.ark", bytes, n - 1);
    free(bytes);
    c = open_with("ali.scp", CORPUS_OPTIONS_DEFAULT);
    expect(c, CORPUS_UNREADABLE, 1, 3, "ali.scp line 4: utt-03: ");
    corpus_free(&c);
    c = open_with("ali.ark", CORPUS_OPTIONS_DEFAULT); /* an archive without its scp: what is behind is lost */
    assert_int_equal(corpus_count(c), 3);
    assert_true(corpus_report(c)->count[CORPUS_UNREADABLE] > 0);
    corpus_free(&c);
}

static void test_targets_out_of_range_are_named(void **state)
{
    (void)state;
    struct corpus *c = open_with("ali.scp", (struct corpus_options){.length_tolerance = 5, .num_targets = 6});
    expect(c, CORPUS_TARGET, 4, 0, "ali.scp line 1: utt-00 has target 6 at frame 6, beyond 0..5");
    corpus_free(&c);
    data_dir_print(&dir, "ali.txt", "utt-00 0 0 0 -1 0 0 0 0 0 0\n");
    data_dir_print(&dir, "ali.scp", "utt-00 ali.txt:7\n");
    c = open_with("ali.scp", CORPUS_OPTIONS_DEFAULT);
    assert_int_equal(corpus_report(c)->count[CORPUS_TARGET], 1);
    assert_non_null(strstr(corpus_report(c)->example[CORPUS_TARGET][0], "target -1 at frame 3"));
    corpus_free(&c);
}

static void test_empty_utterances_are_named(void **state)
{
    (void)state;
    const size_t some[3] = {5, 0, 4};
    data_dir_corpus(&dir, 3, some, 3);
    struct corpus *c = open_with("ali.scp", CORPUS_OPTIONS_DEFAULT);
    expect(c, CORPUS_EMPTY, 1, 2, "feats.scp line 2: utt-01 has no frames");
    corpus_free(&c);
}

static void test_commands_are_refused_or_run_in_the_scp_folder(void **state)
{
    (void)state;
    char *text = slurp("feats.scp");
    char *line = strstr(text, "utt-01"), *rest = strchr(line, '\n');
    *line = 0;
    data_dir_print(&dir, "m.txt",
                   "[ 1 2 3\n 4 5 6\n 1 2 3\n 4 5 6\n 1 2 3\n 4 5 6\n 1 2 3\n 4 5 6\n 1 2 3\n 4 5 6\n 1 2 "
                   "3\n 4 5 6 ]\n");
    data_dir_print(&dir, "feats.scp", "%sutt-01 touch ran; cat m.txt |%s", text, rest);
    free(text);
    struct corpus *c = open_with("ali.scp", CORPUS_OPTIONS_DEFAULT);
    expect(c, CORPUS_PIPE, 1, 3, "feats.scp line 2: utt-01 is a command, which needs --allow-pipes");
    assert_false(files_exists(data_dir_file(&dir, "ran")));
    corpus_free(&c);
    c = open_with("ali.scp", (struct corpus_options){.length_tolerance = 5, .allow_pipes = true});
    expect(c, 0, 0, 4, NULL);
    assert_true(files_exists(data_dir_file(&dir, "ran")));
    corpus_free(&c);
    struct corpus_options o =
        CORPUS_OPTIONS_DEFAULT; /* targets that are a command: not without leave either */
    unlink(data_dir_file(&dir, "ran"));
    char spec[600];
    snprintf(spec, sizeof spec, "ark:touch %s; echo |", data_dir_file(&dir, "ran"));
    assert_int_equal(corpus_open(dir.path, spec, &o, &c), ERR_DATA);
    assert_false(files_exists(data_dir_file(&dir, "ran")));
}

static void test_utt2num_frames_is_believed_until_the_archive_says_otherwise(void **state)
{
    (void)state;
    data_dir_print(&dir, "utt2num_frames", "utt-00 10\nutt-01 14\nutt-02 20\nutt-03 9\n");
    struct corpus *c = open_with(NULL, CORPUS_OPTIONS_DEFAULT);
    assert_int_equal(corpus_utterance(c, 1)->frames, 14);
    expect(c, CORPUS_FRAME_COUNT, 2, 3, "utt-01 has 12 frames, not 14");
    struct frontend f = {.dim = 3};
    struct utterance *u = utterance_new();
    assert_int_equal(utterance_load(c, 1, &f, u), 0); /* within the tolerance: what is there */
    assert_int_equal(u->frames, 12);
    assert_int_equal(utterance_load(c, 2, &f, u), ERR_DATA);
    assert_non_null(strstr(err_text(), "utt-02 has 8 frames where 20 were promised"));
    utterance_free(&u);
    corpus_free(&c);
}

static void test_speakers_come_from_utt2spk_or_are_the_utterances(void **state)
{
    (void)state;
    struct corpus *c = open_with(NULL, CORPUS_OPTIONS_DEFAULT);
    assert_int_equal(corpus_num_speakers(c), 4);
    assert_string_equal(corpus_speaker(c, corpus_utterance(c, 3)->speaker), "utt-03");
    corpus_free(&c);
    data_dir_print(&dir, "utt2spk", "utt-00 anna\nutt-01 bert\nutt-02 anna\n");
    c = open_with(NULL, CORPUS_OPTIONS_DEFAULT);
    assert_int_equal(corpus_num_speakers(c), 3);
    assert_int_equal(corpus_utterance(c, 0)->speaker, corpus_utterance(c, 2)->speaker);
    expect(c, CORPUS_NO_UTT2SPK, 1, 4, "utt-03 is not in utt2spk");
    corpus_free(&c);
}

static void test_a_directory_without_anything_usable_is_refused(void **state)
{
    (void)state;
    struct corpus_options o = CORPUS_OPTIONS_DEFAULT;
    struct corpus *c;
    assert_int_equal(corpus_open("/nonexistent", NULL, &o, &c), ERR_DATA);
    assert_non_null(strstr(err_text(), "is not a data directory"));
    assert_int_equal(corpus_open(dir.path, "nothing.scp", &o, &c), ERR_DATA);
    assert_non_null(strstr(err_text(), "targets"));
    o.num_targets = 1;
    assert_int_equal(corpus_open(dir.path, "ali.scp", &o, &c), ERR_DATA);
    assert_non_null(strstr(err_text(), "no usable utterance of 4"));
    data_dir_print(&dir, "feats.scp", "%s", "");
    assert_int_equal(corpus_open(dir.path, NULL, &o, &c), ERR_DATA);
    data_dir_print(&dir, "feats.scp", "utt-00\nutt-01 feats.ark:7\n");
    c = open_with(NULL, CORPUS_OPTIONS_DEFAULT);
    assert_int_equal(corpus_report(c)->count[CORPUS_BAD_LINE], 1);
    assert_non_null(strstr(corpus_report(c)->example[CORPUS_BAD_LINE][0], "line 1"));
    corpus_free(&c);
}

static void test_the_real_dev_set_is_clean(void **state)
{
    (void)state;
    char path[600];
    struct corpus_options o = CORPUS_OPTIONS_DEFAULT;
    struct corpus *c;
    snprintf(path, sizeof path, "%s/an4/dev", data_dir_shared());
    if (!files_is_dir(path)) {
        print_message("skipped: %s is absent\n", path);
        skip();
    }
    assert_int_equal(corpus_open(path, "ali_cd.scp", &o, &c), 0);
    assert_int_equal(corpus_count(c), 105);
    assert_int_equal(corpus_frames(c), 29510);
    assert_int_equal(corpus_num_speakers(c), 8);
    assert_int_equal(corpus_report_total(corpus_report(c)), 0);
    corpus_free(&c);
}

#define EACH(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        EACH(test_a_clean_directory_is_joined_by_id),
        EACH(test_the_hash_depends_on_ids_and_frame_counts_alone),
        EACH(test_a_missing_alignment_is_counted_and_skipped),
        EACH(test_a_length_difference_is_cut_within_the_tolerance_and_skipped_beyond),
        EACH(test_nan_and_infinite_features_are_found_by_the_scan_and_refused_when_loaded),
        EACH(test_a_wrong_dimension_is_named),
        EACH(test_unsorted_and_duplicate_ids_are_named),
        EACH(test_truncated_archives_are_named_with_file_and_offset),
        EACH(test_targets_out_of_range_are_named),
        EACH(test_empty_utterances_are_named),
        EACH(test_commands_are_refused_or_run_in_the_scp_folder),
        EACH(test_utt2num_frames_is_believed_until_the_archive_says_otherwise),
        EACH(test_speakers_come_from_utt2spk_or_are_the_utterances),
        EACH(test_a_directory_without_anything_usable_is_refused),
        EACH(test_the_real_dev_set_is_clean),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
