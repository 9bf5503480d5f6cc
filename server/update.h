/* The update of one block in one pass over memory: the gradient is decoded and the new weights are encoded on
 * the way, a few hundred numbers at a time. Plain functions, any thread; with the same numbers the same bits,
 * whatever compiler and CPU. g: the gradient, in the unit of train.gradient. How large rate and momentum are
 * is decided in pace.h.
 *
 *   dc         g += lambda g g (w - backup)   (sgd, momentum, nesterov; backup: the weights g was computed
 *                                              from; Zheng 2017)
 *   decay      g += d w                       (all but adamw; after dc: it is of the weights of now)
 *   sgd        w -= r g
 *   momentum   v = mu v + g;  w -= r v
 *   nesterov   v = mu v + g;  w -= r (g + mu v)
 *   adagrad    q += g g;  w -= r g / (sqrt(q) + e)                      (Duchi 2011, as in DistBelief)
 *   rmsprop    q = b2 q + (1 - b2) g g;  w -= r g / (sqrt(q) + e)
 *   adam       v = b1 v + (1 - b1) g;  q = b2 q + (1 - b2) g g;
 *              w -= r v / (1 - b1^t) / (sqrt(q / (1 - b2^t)) + e)       t: this update of the block, from 1
 *   adamw      w -= r d w, then as adam       (Loshchilov 2019)
 *
 * v is SLOT_MOMENTUM, q is SLOT_SQUARE. Source: DESIGN section 2. */
#ifndef SERVER_UPDATE_H
#define SERVER_UPDATE_H

#include "common/config.h"
#include "common/element.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct update_rule {
    enum optimizer_type type;
    float beta1, beta2, epsilon;
    float weight_decay;
    float compensation; /* lambda; 0 = off */
};

void update_rule_from(const struct config *c, struct update_rule *out);
/* The slots it needs: bit k = enum shard_slot k. */
unsigned update_slots(const struct update_rule *r);

/* What changes from one update to the next. */
struct update_step {
    float rate, momentum;
    uint64_t number; /* of this update of the block, from 1 */
};

/* n numbers each. momentum and square as update_slots says, else NULL; backup NULL: not compensated. None
 * overlap, but `to` may be g where they have the same length. */
struct update_block {
    void *g, *to; /* the gradient; where the new weights go as well, or NULL */
    enum element_type g_type, to_type;
    float *weights, *momentum, *square;
    const float *backup;
    size_t n;
};
/* If g is fp32, it holds the new weights afterwards. */
void update_apply(const struct update_rule *r, const struct update_step *s, const struct update_block *b);

/* L2 norm of a gradient to single precision, summed in a fixed order; not finite exactly if some number of g
 * is not. One pass, no branch per element. */
double update_norm(enum element_type type, const void *g, size_t n);
/* bsp: sum += g, element by element; and g /= by. */
void update_add(float *sum, const float *g, size_t n);
void update_divide(float *g, float by, size_t n);

#endif
