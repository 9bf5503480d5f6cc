/* Every set of panel kernels that this CPU has, against double, over random shapes. */
#include "tests/unit/worker/panels_case.h"
#include "worker/nnet/blas.h"
#include "worker/nnet/plan.h"

#define ROUNDS 2
#define MANY   30 /* shapes of more than 67 rows in a round */

/* n = every S from 1 to 67, and some of a whole window. */
static void each_case(struct world *w, void (*check)(struct world *w))
{
    for (uint64_t seed = 1; seed <= ROUNDS; seed++) {
        print_message("seed %u\n", (unsigned)seed);
        rng_init(&w->rng, seed);
        for (size_t n = 1; n <= 67 + MANY; n++) {
            if (n <= 67)
                draw_case(w, n, 300);
            else
                draw_case(w, 68 + rng_below(&w->rng, 263), 64);
            check(w);
        }
    }
}

/* The kernels of a level, named for the messages. */
static const struct panel_kernels *kernels_of(struct world *w, enum plan_level level)
{
    const struct panel_kernels *k = plan_make(level).panels;
    w->kernels = k->name;
    return k;
}

/* --- rules */

static void check_forward(struct world *w)
{
    struct sums s = sums_of(w->n, w->out, w->in, (struct side){w->plain_x[0], w->in, 1},
                            (struct side){w->plain_w, w->in, 1});
    double *before = xcalloc(w->n * w->out, sizeof *before);
    EACH_LEVEL(level)
    for (int adds = 0; adds < 2; adds++) {
        place(&w->y, &w->rng, w->n, w->out, false);
        if (adds) fill(&w->y, &w->rng, before);
        kernels_of(w, level)->forward(panels_of(&w->w), w->n, rows_of(&w->x[0]), adds,
                                      (struct rows){w->y.data, w->y.ld});
        check_sums(w, adds ? "forward adds" : "forward", &w->y, &s, 1, adds ? before : NULL);
    }
    free(before);
    sums_free(&s);
}

/* Rule: y = x W' and y += x W'. */
static void forward_equals_double_within_the_bound(void **state)
{
    each_case(*state, check_forward);
}

static struct sums backward_sums(const struct world *w)
{
    return sums_of(w->n, w->in, w->out, (struct side){w->plain_d_y, w->out, 1},
                   (struct side){w->plain_w, 1, w->in});
}

static void check_backward(struct world *w)
{
    struct sums s = backward_sums(w);
    double *before = xcalloc(w->n * w->in, sizeof *before);
    EACH_LEVEL(level)
    for (int adds = 0; adds < 2; adds++) {
        place(&w->y, &w->rng, w->n, w->in, false);
        place(&w->scratch, &w->rng, 1, PANELS_TURN_SCRATCH, true);
        if (adds) fill(&w->y, &w->rng, before);
        kernels_of(w, level)->backward(panels_of(&w->w), w->n, rows_of(&w->d_y), adds,
                                       (struct rows){w->y.data, w->y.ld}, w->scratch.data);
        check_sums(w, adds ? "backward adds" : "backward", &w->y, &s, 1, adds ? before : NULL);
        check_fence(w, "scratch", &w->scratch);
    }
    free(before);
    sums_free(&s);
}

/* Rule: d_x = d_y W and d_x += d_y W. */
static void backward_equals_double_within_the_bound(void **state)
{
    each_case(*state, check_backward);
}

/* Panels [begin, end) of W' are those of W, bit for bit, the others as they were: the fence. */
static void check_turned(const struct world *w, size_t begin, size_t end)
{
    const struct block *turned = &w->grad[0];
    check_fence(w, "turn", turned);
    for (size_t k = 0; k < w->in; k++)
        for (size_t o = 0; o < w->out; o++) {
            bool is_there = k / PANEL >= begin && k / PANEL < end;
            const void *want = is_there ? (const void *)at(&w->w, o, k) : &fence_bits;
            if (memcmp(at(turned, k, o), want, 4) != 0)
                fail_msg("%s, %s, turn [%zu, %zu): (%zu, %zu)", w->kernels, w->shape, begin, end, k, o);
        }
}

static void check_turn(struct world *w)
{
    struct sums s = backward_sums(w);
    size_t count = panels_count(w->in), first = rng_below(&w->rng, count),
           last = first + rng_below(&w->rng, count - first + 1);
    EACH_LEVEL(level)
    {
        const struct panel_kernels *k = kernels_of(w, level);
        place(&w->grad[0], &w->rng, w->in, w->out, true);
        k->turn(panels_of(&w->w), first, last, w->grad[0].data);
        check_turned(w, first, last);
        k->turn(panels_of(&w->w), last, count, w->grad[0].data);
        k->turn(panels_of(&w->w), 0, first, w->grad[0].data);
        check_turned(w, 0, count);
        place(&w->y, &w->rng, w->n, w->in, false);
        k->forward(panels_of(&w->grad[0]), w->n, rows_of(&w->d_y), false, (struct rows){w->y.data, w->y.ld});
        check_sums(w, "forward of turned", &w->y, &s, 1, NULL);
    }
    sums_free(&s);
}

/* Rule: turn moves W' into panels, in parts of any size and order and nothing beyond a part; forward with it
 * is backward. */
static void turn_moves_every_number_to_its_place(void **state)
{
    each_case(*state, check_turn);
}

/* All of the gradient's outputs in new places; returns what the kernel returns. */
static double run_gradient(struct world *w, const struct panel_kernels *k, size_t num_terms, bool has_bias,
                           float scale)
{
    struct panels_gradient terms[2];
    size_t ins[2] = {w->in, w->more}, sum = 0;
    for (size_t i = 0; i < num_terms; sum += ins[i], i++) {
        place(&w->grad[i], &w->rng, w->out, ins[i], true);
        terms[i] = (struct panels_gradient){w->grad[i].data, ins[i], rows_of(&w->x[i])};
    }
    place(&w->bias, &w->rng, 1, w->out, false);
    place(&w->scratch, &w->rng, 1, panels_gradient_scratch(w->n, sum), true);
    return k->gradient(w->out, w->n, rows_of(&w->d_y), terms, num_terms, scale,
                       has_bias ? w->bias.data : NULL, w->scratch.data);
}

static double squares_of(const struct block *b)
{
    double sum = 0;
    for (size_t i = 0; i < b->rows * b->cols; i++) {
        double v = (double)*at(b, i / b->cols, i % b->cols);
        sum += v * v;
    }
    return sum;
}

/* A lane adds up the squares of 4 rows and then 3 vectors in float before they become double: m = 4 + 2. */
static void check_squares(const struct world *w, double got, double want)
{
    double m = 6 * UNIT;
    if (!(fabs(got - want) <= m / (1 - m) * want))
        fail_msg("%s, %s: sum of squares %.9g, want %.9g", w->kernels, w->shape, got, want);
}

static void check_gradient(struct world *w)
{
    double one = 1;
    struct side d_y = {w->plain_d_y, 1, w->out};
    struct sums s[2] = {sums_of(w->out, w->in, w->n, d_y, (struct side){w->plain_x[0], 1, w->in}),
                        sums_of(w->out, w->more, w->n, d_y, (struct side){w->plain_x[1], 1, w->more})};
    struct sums columns = sums_of(1, w->out, w->n, (struct side){&one, 0, 0}, d_y);
    EACH_LEVEL(level)
    for (size_t kind = 0; kind < 4; kind++) {
        size_t num_terms = 1 + kind % 2;
        bool has_bias = kind > 1;
        float scale = rng_below(&w->rng, 2) ? 1 : rng_range(&w->rng, -1, 1);
        double squares = run_gradient(w, kernels_of(w, level), num_terms, has_bias, scale), want = 0;
        for (size_t i = 0; i < num_terms; i++) {
            check_sums(w, i ? "second gradient" : "gradient", &w->grad[i], &s[i], (double)scale, NULL);
            want += squares_of(&w->grad[i]);
        }
        if (has_bias) {
            check_sums(w, "bias", &w->bias, &columns, (double)scale, NULL);
            want += squares_of(&w->bias);
        }
        check_squares(w, squares, want);
        check_fence(w, "scratch", &w->scratch);
    }
    for (size_t i = 0; i < 2; i++) sums_free(&s[i]);
    sums_free(&columns);
}

/* Rule: grad = scale d_y' x of one or two x, and the sums of the columns; returned is the sum of the squares
 * of what was written. */
static void gradient_equals_double_within_the_bound(void **state)
{
    each_case(*state, check_gradient);
}

/* --- what is not a number */

#define NOWHERE SIZE_MAX

/* Not finite in this row and column, and nowhere else. */
static void check_touched(const struct world *w, const char *what, const struct block *b, size_t row,
                          size_t col)
{
    for (size_t r = 0; r < b->rows; r++)
        for (size_t c = 0; c < b->cols; c++)
            if (isfinite(*at(b, r, c)) == (r == row || c == col))
                fail_msg("%s, %s, %s: (%zu, %zu) is %g", w->kernels, w->shape, what, r, c,
                         (double)*at(b, r, c));
    check_fence(w, what, b);
}

static void run_forward(struct world *w, const struct panel_kernels *k)
{
    place(&w->y, &w->rng, w->n, w->out, false);
    k->forward(panels_of(&w->w), w->n, rows_of(&w->x[0]), false, (struct rows){w->y.data, w->y.ld});
}

static void run_backward(struct world *w, const struct panel_kernels *k)
{
    place(&w->y, &w->rng, w->n, w->in, false);
    place(&w->scratch, &w->rng, 1, PANELS_TURN_SCRATCH, true);
    k->backward(panels_of(&w->w), w->n, rows_of(&w->d_y), false, (struct rows){w->y.data, w->y.ld},
                w->scratch.data);
}

static void check_poison(struct world *w)
{
    static const float poisons[] = {NAN, INFINITY, -INFINITY};
    size_t r = rng_below(&w->rng, w->n), o = rng_below(&w->rng, w->out), k = rng_below(&w->rng, w->in);
    float poison = poisons[rng_below(&w->rng, 3)], *x = at(&w->x[0], r, k), *d_y = at(&w->d_y, r, o),
          *weight = at(&w->w, o, k), kept[3] = {*x, *d_y, *weight};
    EACH_LEVEL(level)
    {
        const struct panel_kernels *kernels = kernels_of(w, level);
        *x = poison;
        run_forward(w, kernels);
        check_touched(w, "forward, x", &w->y, r, NOWHERE);
        assert_false(isfinite(run_gradient(w, kernels, 2, true, 0.5f)));
        check_touched(w, "gradient, x", &w->grad[0], NOWHERE, k);
        check_touched(w, "second gradient, x", &w->grad[1], NOWHERE, NOWHERE);
        check_touched(w, "bias, x", &w->bias, NOWHERE, NOWHERE);
        *x = kept[0];
        *d_y = poison;
        run_backward(w, kernels);
        check_touched(w, "backward, d_y", &w->y, r, NOWHERE);
        assert_false(isfinite(run_gradient(w, kernels, 2, true, 0.5f)));
        for (size_t i = 0; i < 2; i++) check_touched(w, "gradient, d_y", &w->grad[i], o, NOWHERE);
        check_touched(w, "bias, d_y", &w->bias, NOWHERE, o);
        *d_y = kept[1];
        *weight = poison;
        run_forward(w, kernels);
        check_touched(w, "forward, W", &w->y, NOWHERE, o);
        run_backward(w, kernels);
        check_touched(w, "backward, W", &w->y, NOWHERE, k);
        *weight = kept[2];
    }
}

/* Rule: NaN and infinity come out in every output that they touch and in no other, and in the sum of squares.
 */
static void what_is_not_finite_comes_out_where_it_belongs(void **state)
{
    each_case(*state, check_poison);
}

/* --- bits */

/* Remembers b the first time, compares it the second time. */
static void check_bits(const struct world *w, const char *what, const struct block *b, bool again,
                       float *kept)
{
    size_t bytes = extent(b) * sizeof *kept;
    if (again && memcmp(kept, b->data, bytes) != 0)
        fail_msg("%s, %s, %s: other bits again", w->kernels, w->shape, what);
    memcpy(kept, b->data, bytes);
}

/* The same places each time: the generator goes back to where it was. */
static void check_again(struct world *w)
{
    static float kept[4][AREA];
    const struct rng from = w->rng;
    double squares[2];
    EACH_LEVEL(level)
    for (int again = 0; again < 2; again++) {
        const struct panel_kernels *k = kernels_of(w, level);
        w->rng = from;
        run_forward(w, k);
        check_bits(w, "forward", &w->y, again, kept[0]);
        run_backward(w, k);
        check_bits(w, "backward", &w->y, again, kept[1]);
        squares[again] = run_gradient(w, k, 1, true, 0.3f);
        check_bits(w, "gradient", &w->grad[0], again, kept[2]);
        check_bits(w, "bias", &w->bias, again, kept[3]);
        if (again) assert_memory_equal(&squares[0], &squares[1], sizeof squares[0]);
    }
}

/* Rule: the same call gives the same bits. */
static void the_same_call_gives_the_same_bits(void **state)
{
    each_case(*state, check_again);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_equals_double_within_the_bound),
        cmocka_unit_test(backward_equals_double_within_the_bound),
        cmocka_unit_test(turn_moves_every_number_to_its_place),
        cmocka_unit_test(gradient_equals_double_within_the_bound),
        cmocka_unit_test(what_is_not_finite_comes_out_where_it_belongs),
        cmocka_unit_test(the_same_call_gives_the_same_bits),
    };
    blas_use_one_thread();
    return cmocka_run_group_tests(tests, setup, teardown);
}
