/* From tokens to features: the equations of model.py, of many texts at once and of several tokens of each.

   Positions are numbered through: first the tokens of the first text, then those of the second, and so on. All products
   but the recurrent one take all positions at once; the recurrent one takes the t-th token of every text that has one. */

#include "model.h"

/* y = W x + b for `count` rows and `panels` panels of outputs, or added to what is in y. Each sum is made of the bias and
   then one input after the other, however many rows and panels there are. */
static inline __attribute__((always_inline)) void
tile(const int count, const int panels, const Map *map, int panel, const float *const *x, float *const *y, int add) {
    const float *weight = map->weight + (int64_t)panel * map->in * PANEL;
    const int vectors = 4 * panels;
    Lanes sums[ROWS_AT_ONCE][8];
    for (int i = 0; i < count; i++)
        for (int j = 0; j < vectors; j++) sums[i][j] = load(map->bias + panel * PANEL + j * LANES);
    for (int k = 0; k < map->in; k++) {
        Lanes w[8];
        for (int j = 0; j < vectors; j++)
            w[j] = load(weight + ((int64_t)(j / 4) * map->in + k) * PANEL + j % 4 * LANES);
        for (int i = 0; i < count; i++) {
            Lanes value = all(x[i][k]);
            for (int j = 0; j < vectors; j++) sums[i][j] += value * w[j];
        }
    }
    for (int i = 0; i < count; i++)
        for (int j = 0; j < vectors; j++) {
            float *place = y[i] + panel * PANEL + j * LANES;
            if (add) sums[i][j] += load(place);
            store(place, sums[i][j]);
        }
}

/* The same for all panels and any rows. */
static void apply_to(const Map *map, int count, const float *const *x, float *const *y, int add) {
    int panels = (map->out + PANEL - 1) / PANEL, panel = 0;
    for (; count == 1 && panel + 2 <= panels; panel += 2) tile(1, 2, map, panel, x, y, add);
    for (; panel < panels; panel++) {
        int i = 0;
        for (; i + ROWS_AT_ONCE <= count; i += ROWS_AT_ONCE) tile(ROWS_AT_ONCE, 1, map, panel, x + i, y + i, add);
        switch (count - i) {
        case 1: tile(1, 1, map, panel, x + i, y + i, add); break;
#if ROWS_AT_ONCE > 2
        case 2: tile(2, 1, map, panel, x + i, y + i, add); break;
        case 3: tile(3, 1, map, panel, x + i, y + i, add); break;
#endif
#if ROWS_AT_ONCE > 4
        case 4: tile(4, 1, map, panel, x + i, y + i, add); break;
        case 5: tile(5, 1, map, panel, x + i, y + i, add); break;
#endif
        }
    }
}

/* The same for rows that lie one behind the other. */
static void apply(const Model *m, const Map *map, int count, const float *x, float *y, int64_t y_stride, int add) {
    for (int i = 0; i < count; i++) {
        m->from[i] = x + i * m->stride;
        m->to[i] = y + i * y_stride;
    }
    apply_to(map, count, m->from, m->to, add);
}

/* u = x / sqrt(mean(x^2) + eps) */
static void normalise(const Model *m, int count, const float *x, float *u) {
    for (int i = 0; i < count; i++, x += m->stride, u += m->stride) {
        Lanes squares = {0};
        for (int j = 0; j < m->width; j += LANES) { /* what lies behind the width is 0 */
            Lanes part = load(x + j);
            squares += part * part;
        }
        float scale = 1.0f / sqrtf(sum_of(squares) / m->width + FLT_EPSILON);
        for (int j = 0; j < m->width; j += LANES) store(u + j, load(x + j) * scale);
    }
}

/* The recurrence over each text's tokens, h_t in place of i_t, and the last in the text's memory:
   h_t = phi(i_t + W h_{t-1}), or h_t = a h_{t-1} + (1 - a) c where i_t is sigmoid^-1(a) and c side by side. */
static void recur(const Model *m, const Rows *rows, const Block *b, int texts, const int32_t *which,
                  const int32_t *counts, float *i_t) {
    for (int t = 0, active = texts; active; t++) {
        active = 0;
        for (int s = 0, begin = 0; s < texts; begin += counts[s++])
            if (t < counts[s]) {
                m->from[active] = rows->hidden + which[s] * rows->hidden_stride + b->hidden_offset;
                m->to[active++] = i_t + (int64_t)(begin + t) * m->stride;
            }
        if (b->cell != GATED) apply_to(&b->recurrent, active, m->from, m->to, 1);
        for (int s = 0; s < active; s++) {
            float *h = m->to[s], *memory = (float *)m->from[s];
            for (int j = 0; j < b->hidden; j += LANES) {
                Lanes value = load(h + j);
                if (b->cell == GATED) {
                    Lanes candidate = load(h + b->hidden + j);
                    value = candidate + sigmoid(value) * (load(memory + j) - candidate);
                } else if (b->cell == TANH) {
                    value = hyperbolic_tangent(value);
                } else {
                    value = larger(value, all(0));
                }
                store(h + j, value);
                store(memory + j, value);
            }
        }
    }
}

/* softmax_n(q . k_n) over the S tokens of a text, in m->scores, but for a factor, which is returned. keys: where they lie
   in a page, [K][PAGE]. */
static float shares(const Model *m, float *const *pages, int64_t keys, int K, int S, const float *q) {
    Lanes most = all(-INFINITY), total = {0};
    for (int begin = 0; begin < S; begin += PAGE) {
        const float *k = pages[begin / PAGE] + keys;
        Lanes even[PAGE / LANES] = {0}, odd[PAGE / LANES] = {0};
        for (int i = 0; i < K; i += 2, k += 2 * PAGE) {
            for (int j = 0; j < PAGE / LANES; j++) even[j] += q[i] * load(k + j * LANES);
            if (i + 1 < K)
                for (int j = 0; j < PAGE / LANES; j++) odd[j] += q[i + 1] * load(k + PAGE + j * LANES);
        }
        for (int j = 0; j < PAGE / LANES; j++) store(m->scores + begin + j * LANES, even[j] + odd[j]);
        for (int n = S; n < begin + PAGE; n++) m->scores[n] = -INFINITY;
        for (int j = 0; j < PAGE; j += LANES) most = larger(load(m->scores + begin + j), most);
    }
    float largest = largest_of(most);
    for (int n = 0; n < S; n += LANES) {
        Lanes share = exponential(load(m->scores + n) - largest);
        store(m->scores + n, share);
        total += share;
    }
    return 1.0f / sum_of(total);
}

/* sum over n of softmax_n(q . k_n) v_n for one head of one position; out is written up to padded_value. */
static void attend(const Model *m, const Block *b, float *const *pages, int head, int S, const float *q, float *out) {
    int K = b->key_dim, width = b->padded_value;
    float scale = shares(m, pages, b->page_offset + head * K * PAGE, K, S, q);
    for (int j = 0; j < width; j += LANES) {
        Lanes sums[4] = {0};
        for (int begin = 0; begin < S; begin += PAGE) {
            const float *v = pages[begin / PAGE] + b->page_offset + b->heads * K * PAGE + head * PAGE * width + j;
            const float *share = m->scores + begin;
            int n = 0, some = S - begin < PAGE ? S - begin : PAGE;
            for (; n + 4 <= some; n += 4)
                for (int i = 0; i < 4; i++) sums[i] += share[n + i] * load(v + (n + i) * width);
            for (int i = 0; n < some; n++, i++) sums[i] += share[n] * load(v + n * width);
        }
        store(out + j, ((sums[0] + sums[1]) + (sums[2] + sums[3])) * scale);
    }
}

/* y (positions) to queries, keys and values, these into the pages, and what attention gives into a. */
static void look(const Model *m, const Rows *rows, const Block *b, int count, const float *y, float *a) {
    apply(m, &b->look[0], count, y, m->b, m->stride, 0);
    const float *qkv = m->b;
    if (b->look[1].out) {
        apply(m, &b->look[1], count, m->b, m->u, m->stride, 0);
        qkv = m->u;
    }
    int K = b->key_dim, V = b->value_dim, N = b->heads;
    for (int i = 0; i < count; i++) {
        float **pages = rows->pages + m->slot[i] * rows->most_pages;
        float *page = pages[m->place[i] / PAGE] + b->page_offset, *values = page + N * K * PAGE;
        int at = m->place[i] % PAGE;
        const float *k = qkv + i * m->stride + N * K, *v = k + N * K;
        for (int j = 0; j < N * K; j++) page[j * PAGE + at] = k[j];
        for (int n = 0; n < N; n++) memcpy(values + (n * PAGE + at) * b->padded_value, v + n * V, 4 * V);
    }
    for (int i = 0; i < count; i++) {
        float **pages = rows->pages + m->slot[i] * rows->most_pages;
        for (int n = 0; n < N; n++) /* what a head writes too much, the next one overwrites */
            attend(m, b, pages, n, m->place[i] + 1, qkv + i * m->stride + n * K, a + i * m->stride + n * V);
    }
}

/* x = x + rnn(norm(x)) */
static void recurrent_part(const Model *m, const Rows *rows, const Block *b, int texts, const int32_t *which,
                           const int32_t *counts, int count) {
    normalise(m, count, m->x, m->u);
    apply(m, &b->input, count, m->u, m->a, m->stride, 0);
    if (b->gate.out) apply(m, &b->gate, count, m->u, m->b, m->stride, 0);
    recur(m, rows, b, texts, which, counts, m->a);
    if (b->gate.out)
        for (int i = 0; i < count; i++)
            for (int64_t j = i * m->stride, end = j + b->hidden; j < end; j += LANES) {
                Lanes g = load(m->b + j);
                store(m->a + j, load(m->a + j) * (g * sigmoid(g)));
            }
    apply(m, &b->output, count, m->a, m->x, m->stride, 1);
}

/* x = x + W_2 relu(W_1 norm(x))^2 */
static void feed_forward_part(const Model *m, const Block *b, int count) {
    normalise(m, count, m->x, m->u);
    apply(m, &b->wide, count, m->u, m->a, m->stride, 0);
    for (int i = 0; i < count; i++)
        for (int64_t j = i * m->stride, end = j + b->wide.out; j < end; j += LANES) {
            Lanes f = larger(load(m->a + j), all(0));
            store(m->a + j, f * f);
        }
    apply(m, &b->narrow, count, m->a, m->x, m->stride, 1);
}

/* The parts that the block has, and x = x + attention(norm(x)) between them. */
static void through_block(const Model *m, const Rows *rows, const Block *b, int texts, const int32_t *which,
                          const int32_t *counts, int count) {
    if (b->output.out) recurrent_part(m, rows, b, texts, which, counts, count);
    if (b->look[0].out) {
        normalise(m, count, m->x, m->u);
        look(m, rows, b, count, m->u, m->a);
        apply(m, &b->attended, count, m->a, m->x, m->stride, 1);
    }
    if (b->wide.out) feed_forward_part(m, b, count);
}

/* Reads counts[s] tokens of each text s, in slot which[s]; their features are left in x (plain) or u (stacked). Returns
   the number of positions. */
static int features(const Model *m, const Rows *rows, int texts, const int32_t *which, const int32_t *counts,
                    const int32_t *tokens) {
    int count = 0;
    for (int s = 0; s < texts; s++) {
        int slot = which[s], before = rows->token[slot];
        for (int t = 0; t < counts[s]; t++, count++) {
            int token = tokens[count], width = m->plain ? m->blocks->hidden : m->width;
            m->slot[count] = slot;
            m->place[count] = rows->length[slot]++;
            float *x = (m->plain ? m->a : m->x) + count * m->stride;
            memcpy(x, m->inputs + (int64_t)token * width, 4 * width);
            memset(x + width, 0, 4 * LANES);
            if (m->pair_rows) {
                const float *pair = m->pairs + ((int64_t)before * 1000003 + (int64_t)token * 7919) % m->pair_rows * width;
                for (int j = 0; j < width; j++) x[j] += pair[j];
            }
            before = token;
        }
        rows->token[slot] = before;
    }
    if (m->plain) {
        recur(m, rows, m->blocks, texts, which, counts, m->a);
        look(m, rows, m->blocks, count, m->a, m->x);
    } else {
        for (int i = 0; i < m->num_blocks; i++) through_block(m, rows, m->blocks + i, texts, which, counts, count);
        normalise(m, count, m->x, m->u);
    }
    return count;
}
