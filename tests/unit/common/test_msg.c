/* Headers: what goes in comes out, and no bytes of a peer do harm. */
#include "common/err.h"
#include "common/config.h"
#include "common/msg.h"
#include "common/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

struct field {
    size_t offset, size;
    char kind; /* u number, b bool, d double, s string */
};

#define MEMBER(s, f) (((struct msg_##s *)0)->f)
#define F(s, f)                                                                                                   \
    {                                                                                                             \
        offsetof(struct msg_##s, f), sizeof MEMBER(s, f),                                                       \
     _Generic(MEMBER(s, f), bool: 'b', double: 'd', char *: 's', default: 'u') \
    }
#define MAX_FIELDS 36

/* Every field of every message, in the order of its struct; that none is missing is a test of its own. */
static const struct shape {
    enum msg_type type;
    size_t size;
    struct field fields[MAX_FIELDS];
} shapes[] = {
    {MSG_HELLO,
     sizeof(struct msg_hello),
     {F(hello, member), F(hello, model_hash), F(hello, shard), F(hello, job_generation),
      F(hello, consistency), F(hello, optimizer), F(hello, gradients), F(hello, weights)}},
    {MSG_WELCOME,
     sizeof(struct msg_welcome),
     {F(welcome, shard), F(welcome, generation), F(welcome, job_generation), F(welcome, first_block),
      F(welcome, blocks), F(welcome, credit)}},
    {MSG_REFUSED, sizeof(struct msg_refused), {F(refused, reason), F(refused, text)}},
    {MSG_PUSH,
     sizeof(struct msg_push),
     {F(push, member), F(push, seq), F(push, job_generation), F(push, generation), F(push, block),
      F(push, base_version), F(push, frames), F(push, base_age_us), F(push, skew), F(push, pull),
      F(push, hash), F(push, type), F(push, quorum), F(push, step)}},
    {MSG_ANSWER,
     sizeof(struct msg_answer),
     {F(answer, block), F(answer, seq), F(answer, verdict), F(answer, version), F(answer, staleness),
      F(answer, stable), F(answer, generation), F(answer, job_generation), F(answer, hash), F(answer, type),
      F(answer, credit), F(answer, quorum), F(answer, step)}},
    {MSG_READ,
     sizeof(struct msg_read),
     {F(read, member), F(read, request), F(read, block), F(read, set), F(read, step)}},
    {MSG_BLOCK,
     sizeof(struct msg_block),
     {F(block, request), F(block, block), F(block, set), F(block, version), F(block, generation),
      F(block, found), F(block, hash), F(block, type)}},
    {MSG_JOIN,
     sizeof(struct msg_join),
     {F(join, role), F(join, member), F(join, host), F(join, pid), F(join, endpoint), F(join, shard),
      F(join, generation), F(join, model_hash), F(join, restored_set)}},
    {MSG_JOINED,
     sizeof(struct msg_joined),
     {F(joined, member), F(joined, incarnation), F(joined, job_generation), F(joined, generation),
      F(joined, rank), F(joined, set), F(joined, capsule_bytes), F(joined, shards)}},
    {MSG_BEAT,
     sizeof(struct msg_beat),
     {F(beat, role),
      F(beat, member),
      F(beat, incarnation),
      F(beat, seq),
      F(beat, frames),
      F(beat, frames_per_s),
      F(beat, staleness_mean),
      F(beat, holding),
      F(beat, copied),
      F(beat, written),
      F(beat, file_bytes),
      F(beat, file_hash),
      F(beat, failed_set),
      F(beat, roster),
      F(beat, halve_from),
      F(beat, version),
      F(beat, applied),
      F(beat, refused),
      F(beat, p50),
      F(beat, p95),
      F(beat, max),
      F(beat, waits),
      F(beat, wait_us),
      F(beat, nonfinite),
      F(beat, norm),
      F(beat, stale),
      F(beat, other_generation),
      F(beat, corrupt),
      F(beat, malformed),
      F(beat, overrun),
      F(beat, stranger)}},
    {MSG_ORDER,
     sizeof(struct msg_order),
     {F(order, incarnation), F(order, command), F(order, map_version), F(order, hold), F(order, capsule_have),
      F(order, capsule_attempt), F(order, set), F(order, keep_set), F(order, roster), F(order, roster_from),
      F(order, halve_from), F(order, workers), F(order, momentum), F(order, oldest_member)}},
    {MSG_MAP_ASK, sizeof(struct msg_map_ask), {F(map_ask, member), F(map_ask, first)}},
    {MSG_MAP,
     offsetof(struct msg_map, count), /* count and the list: fill_map */
     {F(map, version), F(map, first), F(map, total)}},
    {MSG_LEASE_ASK, sizeof(struct msg_lease_ask), {F(lease_ask, member), F(lease_ask, request)}},
    {MSG_LEASE,
     sizeof(struct msg_lease),
     {F(lease, request), F(lease, kind), F(lease, id), F(lease, epoch), F(lease, begin), F(lease, end),
      F(lease, modulus), F(lease, residue), F(lease, residues), F(lease, set)}},
    {MSG_USED,
     sizeof(struct msg_used),
     {F(used, member), F(used, id), F(used, kind), F(used, last_seq), F(used, frames), F(used, loss),
      F(used, correct), F(used, speech_frames), F(used, speech_correct), F(used, failed),
      F(used, given_back)}},
    {MSG_USED_OK, sizeof(struct msg_used_ok), {F(used_ok, id)}},
    {MSG_CAPSULE,
     sizeof(struct msg_capsule),
     {F(capsule, member), F(capsule, set), F(capsule, offset), F(capsule, total), F(capsule, hash),
      F(capsule, attempt), F(capsule, request)}},
    {MSG_CAPSULE_ASK, sizeof(struct msg_capsule_ask), {F(capsule_ask, member), F(capsule_ask, offset)}},
    {MSG_LEAVE, sizeof(struct msg_leave), {F(leave, member)}},
    {MSG_GONE, sizeof(struct msg_gone), {F(gone, host), F(gone, pid)}},
};

#define NUM_SHAPES (sizeof shapes / sizeof *shapes)

static struct rng rng;

static int set_up(void **state)
{
    (void)state;
    uint64_t seed = (uint64_t)time(NULL);
    print_message("seed %llu\n", (unsigned long long)seed);
    rng_init(&rng, seed);
    return 0;
}

static char *body(struct msg *m)
{
    return (char *)&m->hello; /* all bodies of the union begin here */
}

static void fill_text(char *out, size_t size)
{
    size_t len = rng_below(&rng, 3) ? (size_t)rng_below(&rng, size) : size - 1;
    for (size_t i = 0; i < len; i++) out[i] = (char)('!' + rng_below(&rng, 94));
}

static uint64_t any_number(void)
{
    switch (rng_below(&rng, 4)) {
    case 0:
        return 0;
    case 1:
        return UINT64_MAX;
    case 2:
        return rng_below(&rng, 1000);
    default:
        return rng_next(&rng);
    }
}

static void fill_field(char *at, const struct field *f)
{
    uint64_t number = any_number();
    double real = rng_normal(&rng) * 1e6;
    bool yes = number & 1;
    if (f->kind == 's') fill_text(at, f->size);
    if (f->kind == 'u') memcpy(at, &number, f->size);
    if (f->kind == 'd') memcpy(at, &real, sizeof real);
    if (f->kind == 'b') memcpy(at, &yes, sizeof yes);
}

static void fill_map(struct msg_map *m)
{
    m->count = (uint32_t)rng_below(&rng, MSG_MAP_PAGE + 1);
    for (uint32_t i = 0; i < m->count; i++) {
        fill_text(m->shards[i].endpoint, MSG_MAX_ENDPOINT);
        m->shards[i].generation = (uint32_t)any_number();
    }
}

static void limit_names(struct msg *m)
{
    if (m->type == MSG_REFUSED) m->refused.reason %= REFUSAL_FULL + 1;
    if (m->type == MSG_ANSWER) m->answer.verdict %= VERDICT_CORRUPT + 1;
    if (m->type == MSG_ANSWER) m->answer.type %= ELEMENT_TYPES;
    if (m->type == MSG_PUSH) m->push.type %= ELEMENT_TYPES;
    if (m->type == MSG_BLOCK) m->block.type %= ELEMENT_TYPES;
    if (m->type == MSG_HELLO) {
        m->hello.consistency %= CONSISTENCY_SSP + 1;
        m->hello.optimizer %= OPTIMIZER_ADAMW + 1;
        m->hello.gradients %= ELEMENT_TYPES;
        m->hello.weights %= ELEMENT_TYPES;
    }
    if (m->type == MSG_JOIN) m->join.role %= ROLE_SERVER + 1;
    if (m->type == MSG_BEAT) m->beat.role %= ROLE_SERVER + 1;
    if (m->type == MSG_ORDER) m->order.command %= COMMAND_DIVERGED + 1;
    if (m->type == MSG_LEASE) m->lease.kind %= LEASE_HELD + 1;
    if (m->type == MSG_USED) m->used.kind %= LEASE_EVAL + 1;
}

static void fill(const struct shape *s, struct msg *m)
{
    memset(m, 0, sizeof *m);
    m->type = s->type;
    m->job = rng_next(&rng);
    for (const struct field *f = s->fields; f->size; f++) fill_field(body(m) + f->offset, f);
    if (m->type == MSG_MAP) fill_map(&m->map);
    limit_names(m);
}

static void check_equal(const struct shape *s, struct msg *a, struct msg *b)
{
    assert_int_equal(a->type, b->type);
    assert_int_equal(a->job, b->job);
    for (const struct field *f = s->fields; f->size; f++)
        assert_memory_equal(body(a) + f->offset, body(b) + f->offset, f->size);
    if (a->type == MSG_MAP) {
        assert_int_equal(a->map.count, b->map.count);
        assert_memory_equal(a->map.shards, b->map.shards, sizeof a->map.shards);
    }
}

static void test_msg_test_table_has_every_field(void **state)
{
    (void)state;
    for (size_t i = 0; i < NUM_SHAPES; i++) {
        size_t end = 0, widest = 1;
        for (const struct field *f = shapes[i].fields; f->size; f++) {
            size_t align = f->kind == 's' ? 1 : f->size;
            assert_int_equal(f->offset, (end + align - 1) / align * align);
            end = f->offset + f->size;
            if (align > widest) widest = align;
        }
        assert_int_equal(shapes[i].size, (end + widest - 1) / widest * widest);
    }
}

static void test_msg_round_trip_keeps_every_field_of_every_type(void **state)
{
    (void)state;
    for (int round = 0; round < 300; round++) {
        for (size_t i = 0; i < NUM_SHAPES; i++) {
            struct msg in, out;
            uint8_t header[MSG_MAX_HEADER];
            fill(&shapes[i], &in);
            size_t len = msg_encode(&in, header);
            assert_in_range(len, 1, MSG_MAX_HEADER);
            assert_int_equal(msg_decode(header, len, &out), 0);
            check_equal(&shapes[i], &in, &out);
        }
    }
}

/* Decodes bytes of unknown worth from a heap block of their very size, so that the sanitizer sees an overrun;
 * what is accepted must be a message that could be sent on. */
static int decode_any(const uint8_t *bytes, size_t len)
{
    uint8_t *exact = test_malloc(len ? len : 1);
    memcpy(exact, bytes, len);
    struct msg out, before;
    memset(&out, 0x5a, sizeof out);
    memset(&before, 0x5a, sizeof before);
    int err = msg_decode(exact, len, &out);
    test_free(exact);
    assert_true(err == 0 || err == ERR_FAIL || err == ERR_MODEL);
    if (err == ERR_FAIL) assert_memory_equal(&out, &before, sizeof out);
    if (err) assert_true(strlen(err_text()) > 0);
    uint8_t again[MSG_MAX_HEADER];
    if (err == 0) assert_in_range(msg_encode(&out, again), 1, MSG_MAX_HEADER);
    return err;
}

static void test_msg_truncated_headers_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < NUM_SHAPES; i++) {
        struct msg in;
        uint8_t header[MSG_MAX_HEADER];
        fill(&shapes[i], &in);
        size_t len = msg_encode(&in, header);
        for (size_t cut = 0; cut < len; cut++) assert_int_equal(decode_any(header, cut), ERR_FAIL);
    }
}

static void test_msg_flipped_bits_do_no_harm(void **state)
{
    (void)state;
    for (size_t round = 0; round < 200 * NUM_SHAPES; round++) {
        struct msg in;
        uint8_t header[MSG_MAX_HEADER];
        fill(&shapes[round % NUM_SHAPES], &in);
        size_t len = msg_encode(&in, header);
        for (uint64_t flips = 1 + rng_below(&rng, 8); flips > 0; flips--)
            header[rng_below(&rng, len)] ^= (uint8_t)(1u << rng_below(&rng, 8));
        decode_any(header, len);
    }
}

static void test_msg_random_bytes_do_no_harm(void **state)
{
    (void)state;
    uint8_t bytes[MSG_MAX_HEADER];
    for (int round = 0; round < 5000; round++) {
        size_t len = (size_t)rng_below(&rng, round % 10 ? 64 : sizeof bytes + 1);
        for (size_t i = 0; i < len; i++) bytes[i] = (uint8_t)rng_next(&rng);
        decode_any(bytes, len);
    }
}

/* Thousands of empty unknown fields, or of the same body, would make protobuf-c ask for more and more. */
static void test_msg_decoding_takes_bounded_memory(void **state)
{
    (void)state;
    uint8_t bytes[MSG_MAX_HEADER];
    for (size_t i = 0; i < sizeof bytes; i += 2) memcpy(bytes + i, "\x18\x00", 2); /* field 3 = 0 */
    assert_int_equal(decode_any(bytes, sizeof bytes), ERR_FAIL);
    for (size_t i = 0; i + 3 <= sizeof bytes; i += 3) memcpy(bytes + i, "\xca\x01\x00", 3); /* empty MAP */
    assert_int_equal(decode_any(bytes, sizeof bytes / 3 * 3), ERR_FAIL);
}

static void test_msg_header_above_the_limit_is_refused(void **state)
{
    (void)state;
    static const uint8_t bytes[MSG_MAX_HEADER + 1];
    struct msg out;
    assert_int_equal(msg_decode(bytes, sizeof bytes, &out), ERR_FAIL);
    assert_non_null(strstr(err_text(), "4097"));
}

static void test_msg_other_major_is_refused_with_both_numbers(void **state)
{
    (void)state;
    static const uint8_t bytes[] = {0x08, 7, 0x11, 9, 0, 0, 0, 0, 0, 0, 0}; /* major 7, job 9 */
    struct msg out, zero;
    memset(&zero, 0, sizeof zero);
    memset(&out, 0x5a, sizeof out);
    assert_int_equal(msg_decode(bytes, sizeof bytes, &out), ERR_MODEL);
    assert_non_null(strstr(err_text(), "version 7"));
    assert_non_null(strstr(err_text(), "version 1"));
    assert_int_equal(out.job, 9);
    assert_int_equal(out.type, 0);
    assert_memory_equal(body(&out), body(&zero), sizeof out.map);
}

static void test_msg_unknown_fields_are_ignored(void **state)
{
    (void)state;
    struct msg in = {.type = MSG_LEAVE, .job = 3, .leave = {.member = 5}}, out;
    uint8_t header[MSG_MAX_HEADER];
    size_t len = msg_encode(&in, header);
    memcpy(header + len, "\xf8\x3e\x2a", 3); /* field 1007 = 42 */
    assert_int_equal(msg_decode(header, len + 3, &out), 0);
    assert_int_equal(out.leave.member, 5);
}

static void test_msg_unknown_type_is_refused(void **state)
{
    (void)state;
    static const uint8_t bytes[] = {0x08, 1, 0xfa, 0x3e, 0}; /* major 1, an empty body 1007 */
    assert_int_equal(decode_any(bytes, sizeof bytes), ERR_FAIL);
    assert_int_equal(decode_any(bytes, 2), ERR_FAIL);
}

static void test_msg_names_out_of_range_are_refused(void **state)
{
    (void)state;
    struct msg all[] = {{.type = MSG_ANSWER, .answer = {.verdict = VERDICT_CORRUPT + 1}},
                        {.type = MSG_REFUSED, .refused = {.reason = REFUSAL_FULL + 1}},
                        {.type = MSG_JOIN, .join = {.role = ROLE_SERVER + 1}},
                        {.type = MSG_BEAT, .beat = {.role = ROLE_SERVER + 1}},
                        {.type = MSG_ORDER, .order = {.command = COMMAND_DIVERGED + 1}},
                        {.type = MSG_LEASE, .lease = {.kind = LEASE_HELD + 1}},
                        {.type = MSG_USED, .used = {.kind = UINT32_MAX}}};
    uint8_t header[MSG_MAX_HEADER];
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        assert_int_equal(decode_any(header, msg_encode(&all[i], header)), ERR_FAIL);
}

static void test_msg_control_characters_are_replaced(void **state)
{
    (void)state;
    struct msg in = {.type = MSG_REFUSED, .refused = {.text = "a\nb\x1b[31m\x7f"}}, out;
    uint8_t header[MSG_MAX_HEADER];
    assert_int_equal(msg_decode(header, msg_encode(&in, header), &out), 0);
    assert_string_equal(out.refused.text, "a?b?[31m?");
}

static void test_msg_too_long_strings_are_refused(void **state)
{
    (void)state;
    uint8_t bytes[80] = {0x08, 1, 0x8a, 0x02, 66, 0x0a, 64}; /* GONE, a host of 64 letters */
    memset(bytes + 7, 'h', 64);
    assert_int_equal(decode_any(bytes, 71), ERR_FAIL);
    assert_non_null(strstr(err_text(), "host name of 64 bytes"));
    bytes[4] = 65; /* one less fits */
    bytes[6] = 63;
    assert_int_equal(decode_any(bytes, 70), 0);
}

static void test_msg_map_above_its_page_is_refused(void **state)
{
    (void)state;
    uint8_t bytes[64] = {0x08, 1, 0xca, 0x01, 2 * MSG_MAP_PAGE};     /* MAP */
    for (int i = 0; i <= MSG_MAP_PAGE; i++) bytes[5 + 2 * i] = 0x22; /* an empty shard */
    assert_int_equal(decode_any(bytes, 5 + 2 * MSG_MAP_PAGE), 0);
    bytes[4] += 2;
    assert_int_equal(decode_any(bytes, 7 + 2 * MSG_MAP_PAGE), ERR_FAIL);
    assert_non_null(strstr(err_text(), "17 shards"));
}

static void test_msg_every_type_and_verdict_has_a_name(void **state)
{
    (void)state;
    for (size_t i = 0; i < NUM_SHAPES; i++) assert_string_not_equal(msg_name(shapes[i].type), "unknown");
    for (uint32_t v = 0; v <= VERDICT_CORRUPT; v++) assert_string_not_equal(msg_verdict_name(v), "unknown");
    assert_string_equal(msg_name(MSG_MAP_ASK), "map_ask");
    assert_string_equal(msg_verdict_name(VERDICT_GENERATION), "generation");
    assert_string_equal(msg_name((enum msg_type)99), "unknown");
    assert_string_equal(msg_verdict_name(8), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_msg_test_table_has_every_field),
        cmocka_unit_test(test_msg_round_trip_keeps_every_field_of_every_type),
        cmocka_unit_test(test_msg_truncated_headers_are_refused),
        cmocka_unit_test(test_msg_flipped_bits_do_no_harm),
        cmocka_unit_test(test_msg_random_bytes_do_no_harm),
        cmocka_unit_test(test_msg_decoding_takes_bounded_memory),
        cmocka_unit_test(test_msg_header_above_the_limit_is_refused),
        cmocka_unit_test(test_msg_other_major_is_refused_with_both_numbers),
        cmocka_unit_test(test_msg_unknown_fields_are_ignored),
        cmocka_unit_test(test_msg_unknown_type_is_refused),
        cmocka_unit_test(test_msg_names_out_of_range_are_refused),
        cmocka_unit_test(test_msg_control_characters_are_replaced),
        cmocka_unit_test(test_msg_too_long_strings_are_refused),
        cmocka_unit_test(test_msg_map_above_its_page_is_refused),
        cmocka_unit_test(test_msg_every_type_and_verdict_has_a_name),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
