/* From features to the logits of the token that comes next, those of a copy head included (the equations are at the top of
   copying.py). */

#include "blocks.h"

/* The largest logit, and the logarithm of the sum of all e^logit, from which log-probabilities are measured; whether all
   are finite numbers. */
static int measure(const Model *m, const float *logits, float *largest, double *normaliser) {
    Lanes most = all(-INFINITY), sums = {0};
    Ints finite = ~(Ints){0};
    for (int i = 0; i < m->padded; i += LANES) {
        Lanes x = load(logits + i);
        most = larger(x, most);
        finite &= (x >= all(-FLT_MAX)) & (x <= all(FLT_MAX));
    }
    for (int i = 0; i < LANES; i++)
        if (!finite[i]) return 0;
    *largest = largest_of(most);
    double sum = 0;
    for (int i = 0; i < m->padded; i += LANES) {
        sums += exponential(load(logits + i) - *largest);
        if (i / LANES % 16 == 15) sum += sum_of(sums), sums = (Lanes){0};
    }
    *normaliser = *largest + log(sum + sum_of(sums));
    return 1;
}

/* Puts what may be copied into the pages: of each token its id and the key that was made before it came. */
static void add_copies(const Model *m, const Rows *rows, int count, const int32_t *tokens) {
    const Copies *c = &m->copies;
    apply(m, &c->key, count, m->u, m->a, m->stride, 0);
    for (int i = 0; i < count; i++) {
        int slot = m->slot[i], at = m->place[i] % PAGE;
        float *page = rows->pages[slot * rows->most_pages + m->place[i] / PAGE] + c->page_offset;
        float *next = rows->hidden + slot * rows->hidden_stride + c->hidden_offset;
        for (int k = 0; k < c->size; k++) page[k * PAGE + at] = next[k];
        ((int32_t *)(page + c->size * PAGE))[at] = tokens[i];
        memcpy(next, m->a + i * m->stride, 4 * c->size);
    }
}

/* log((1 - g) softmax(logits) + g copied) in place of the logits. */
static void mix_copies(const Model *m, const Rows *rows, int begin, int count, const float *x, float *logits) {
    const Copies *c = &m->copies;
    apply(m, &c->query, count, x, m->a, m->stride, 0);
    apply(m, &c->gate, count, x, m->b, m->stride, 0);
    for (int i = 0; i < count; i++, logits += m->padded) {
        int S = m->place[begin + i] + 1;
        float *const *pages = rows->pages + m->slot[begin + i] * rows->most_pages;
        float scale = shares(m, pages, c->page_offset, c->size, S, m->a + i * m->stride), largest;
        double normaliser, gate = m->b[i * m->stride];
        if (!measure(m, logits, &largest, &normaliser)) continue;
        double of_vocabulary = -log1p(exp(gate)), of_copies = -log1p(exp(-gate)); /* log(1 - g) and log g */
        if (!isfinite(of_vocabulary)) of_vocabulary = -gate;
        if (!isfinite(of_copies)) of_copies = gate;
        memset(m->weights, 0, 4 * m->padded);
        for (int n = 0; n < S; n++)
            m->weights[((const int32_t *)(pages[n / PAGE] + c->page_offset + c->size * PAGE))[n % PAGE]] += m->scores[n];
        float shift = (float)(of_vocabulary - normaliser);
        for (int j = 0; j < m->padded; j += LANES) store(logits + j, load(logits + j) + shift);
        for (int j = 0; j < m->vocab; j++) {
            float copied = m->weights[j] * scale;
            if (copied > FLT_MIN) {
                double one = logits[j], other = of_copies + log(copied), most = one > other ? one : other;
                logits[j] = (float)(most + log1p(exp(-fabs(one - other))));
            }
        }
    }
}

/* Logits (count, padded) of what follows the positions from `begin` on of the last call of `features`. */
static void logits_of(const Model *m, const Rows *rows, int begin, int count, float *logits) {
    const float *x = (m->plain ? m->x : m->u) + begin * m->stride, *in = x;
    if (m->head[1].out) {
        apply(m, &m->head[0], count, x, m->b, m->stride, 0);
        in = m->b;
    }
    apply(m, &m->head[m->head[1].out != 0], count, in, logits, m->padded, 0);
    for (int i = 0; i < count; i++)
        for (int j = m->vocab; j < m->padded; j++) logits[(int64_t)i * m->padded + j] = -FLT_MAX;
    if (m->copies.size) mix_copies(m, rows, begin, count, x, logits);
}
