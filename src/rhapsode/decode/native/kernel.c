/* From logits to tokens: log-probabilities, penalties, filters and the draw, of one row at a time.

   The order and the meaning of the filters are those of filters.py, which is the plain form of this file. */

#include "head.h"

#define LOGITS_AT_ONCE (4 * ROWS_AT_ONCE) /* rows of logits, few enough to stay in the processor's cache */

/* Word number n of the counter-based generator Philox4x64-10 (Salmon et al. 2011) with the key (seed, 0), counted as
   NumPy's Philox(key=seed) counts. */
static uint64_t random_word(uint64_t seed, uint64_t n) {
    uint64_t word[4] = {n / 4 + 1, 0, 0, 0}, key[2] = {seed, 0};
    for (int round = 0; round < 10; round++) {
        unsigned __int128 first = (unsigned __int128)0xD2E7470EE14C6C93u * word[0];
        unsigned __int128 second = (unsigned __int128)0xCA5A826395121157u * word[2];
        uint64_t next[4] = {(uint64_t)(second >> 64) ^ word[1] ^ key[0], (uint64_t)second,
                            (uint64_t)(first >> 64) ^ word[3] ^ key[1], (uint64_t)first};
        memcpy(word, next, sizeof word);
        key[0] += 0x9E3779B97F4A7C15u;
        key[1] += 0xBB67AE8584CAA73Bu;
    }
    return word[n % 4];
}

/* The largest of some values on top, of equal ones the one with the lowest id: a binary heap of ids. */
static int before(const float *values, int32_t one, int32_t other) {
    return values[one] > values[other] || (values[one] == values[other] && one < other);
}

static void sift(const float *values, int32_t *heap, int size, int at) {
    int32_t id = heap[at];
    for (int child; (child = 2 * at + 1) < size; at = child) {
        if (child + 1 < size && before(values, heap[child + 1], heap[child])) child++;
        if (!before(values, heap[child], id)) break;
        heap[at] = heap[child];
    }
    heap[at] = id;
}

static int32_t take_largest(const float *values, int32_t *heap, int *size) {
    int32_t id = heap[0];
    heap[0] = heap[--*size];
    if (*size) sift(values, heap, *size, 0);
    return id;
}

static int all_in_a_heap(const float *values, int32_t *heap, int count) {
    for (int i = 0; i < count; i++) heap[i] = i;
    for (int i = count / 2; i-- > 0;) sift(values, heap, count, i);
    return count;
}

/* The likeliest tokens of a row, the likeliest first. */
static void likeliest(const Model *m, const float *logits, double normaliser, int count, int32_t *ids, double *found) {
    int size = count ? all_in_a_heap(logits, m->order, m->vocab) : 0;
    for (int i = 0; i < count; i++) {
        ids[i] = take_largest(logits, m->order, &size);
        found[i] = logits[ids[i]] - normaliser;
    }
}

/* Logits with bias and penalties, in the weights. */
static void adjust(const Model *m, const Choice *c, const float *logits) {
    float *x = m->weights, penalty = (float)c->repetition;
    memcpy(x, logits, 4 * m->padded);
    for (int i = 0; c->bias && i < m->vocab; i++) x[i] += c->bias[i];
    for (int i = 0; c->seen && i < m->vocab; i++)
        if (c->seen[i]) x[i] = fminf(fmaxf(x[i] > 0 ? x[i] / penalty : x[i] * penalty, -1e30f), 1e30f);
    for (int i = 0; c->written && i < m->vocab; i++)
        if (c->written[i]) x[i] -= (float)(c->frequency * c->written[i] + c->presence);
}

/* Makes 0 of the weights that the filters leave out; the largest weight is 1. */
static void filter(const Model *m, const Choice *c) {
    float *w = m->weights;
    int32_t *order = m->order;
    int few = c->top_k && c->top_k < m->vocab;
    if (few || c->top_p < 1) {
        /* What is taken from the heap leaves room behind it, where it is put: the largest at the very end. */
        int size = all_in_a_heap(w, order, m->vocab), kept = 0, end = m->vocab - 1;
        double total = 0, reached = 0;
        for (float last = 0; few && size && (end - size + 1 < c->top_k || w[order[0]] == last);) {
            int32_t id = take_largest(w, order, &size);
            order[size] = id;
            total += last = w[id];
        }
        for (int i = 0; !few && i < m->vocab; i++) total += w[i];
        int most = few ? m->vocab - size : m->vocab;
        for (; kept < most && (c->top_p == 1 || reached < c->top_p * total); kept++) {
            if (kept == m->vocab - size) {
                int32_t id = take_largest(w, order, &size);
                order[size] = id;
            }
            reached += w[order[end - kept]];
        }
        for (int i = 0; i <= end - kept; i++) w[order[i]] = 0;
    }
    for (int i = 0; c->min_p > 0 && i < m->vocab; i++)
        if (w[i] < c->min_p) w[i] = 0;
}

static float sum_of_panel(const float *w) {
    return sum_of((load(w) + load(w + LANES)) + (load(w + 2 * LANES) + load(w + 3 * LANES)));
}

/* One token by the weights, for a number u in [0, 1): the first whose weight and those before it pass u of the sum. */
static int32_t draw(const Model *m, double u) {
    const float *w = m->weights;
    double total = 0, passed = 0;
    for (int i = 0; i < m->padded; i += PANEL) total += sum_of_panel(w + i);
    double aim = u * total, next;
    int i = 0;
    for (; i + PANEL < m->padded && (next = passed + sum_of_panel(w + i)) <= aim; i += PANEL) passed = next;
    for (; i < m->padded; i++)
        if (w[i] > 0 && (passed += w[i]) > aim) return i;
    for (i = m->vocab - 1; w[i] == 0;) i--; /* rounding left nothing that passes */
    return i;
}

/* The next token of one text: its number in `found` is `at`. */
static void choose(const Model *m, Choice *c, const float *logits, const Results *found, int at) {
    float largest;
    double normaliser;
    int32_t id = found->ids[at] = -1;
    if (!measure(m, logits, &largest, &normaliser)) return;
    const float *x = logits;
    if (c->bias || c->seen || c->written) {
        adjust(m, c, logits);
        x = m->weights;
        largest = x[0];
        for (int i = 1; i < m->vocab; i++) largest = x[i] > largest ? x[i] : largest;
    }
    if (c->temperature == 0) {
        for (id = 0; x[id] < largest;) id++;
    } else {
        float temperature = (float)fmax(c->temperature, 1e-30);
        for (int i = 0; i < m->padded; i += LANES)
            store(m->weights + i, exponential((load(x + i) - largest) / temperature));
        filter(m, c);
        id = draw(m, (double)(random_word(c->seed, c->drawn++) >> 11) / 9007199254740992.0);
    }
    found->ids[at] = id;
    found->log_probabilities[at] = logits[id] - normaliser;
    if (c->seen) c->seen[id] = 1;
    if (c->written) c->written[id]++;
    likeliest(m, logits, normaliser, c->alternatives, found->alternatives + at * found->most,
              found->their_log_probabilities + at * found->most);
}

/* What the model thinks of the token found->ids[at]. */
static void score(const Model *m, const float *logits, const Results *found, int at) {
    float largest;
    double normaliser;
    if (!measure(m, logits, &largest, &normaliser)) {
        found->ids[at] = -1;
        return;
    }
    found->log_probabilities[at] = logits[found->ids[at]] - normaliser;
    likeliest(m, logits, normaliser, found->most, found->alternatives + at * found->most,
              found->their_log_probabilities + at * found->most);
}

/* Reads counts[s] tokens of each text s, in slot which[s]; the features stay for `rhapsode_logits` and
   `rhapsode_score`. */
void rhapsode_read(const Model *m, const Rows *rows, int64_t texts, const int32_t *which, const int32_t *counts,
                   const int32_t *tokens) {
    int count = features(m, rows, texts, which, counts, tokens);
    if (m->copies.size) add_copies(m, rows, count, tokens);
}

/* Logits (padded) of what follows one position of the last call. */
void rhapsode_logits(const Model *m, const Rows *rows, int64_t position, float *logits) {
    logits_of(m, rows, position, 1, logits);
}

/* Chooses a token for one text by its logits (padded). */
void rhapsode_choose(const Model *m, Choice *choice, const float *logits, const Results *found) {
    choose(m, choice, logits, found, 0);
}

/* Reads the token found->ids of each text, and puts the next in its place. ones: (texts), all 1. */
void rhapsode_step(const Model *m, const Rows *rows, Choice *choices, int64_t texts, const int32_t *which,
                   const int32_t *ones, const Results *found) {
    rhapsode_read(m, rows, texts, which, ones, found->ids);
    for (int begin = 0; begin < texts; begin += LOGITS_AT_ONCE) {
        int count = texts - begin < LOGITS_AT_ONCE ? texts - begin : LOGITS_AT_ONCE;
        logits_of(m, rows, begin, count, m->logits);
        for (int i = 0; i < count; i++)
            choose(m, choices + which[begin + i], m->logits + (int64_t)i * m->padded, found, begin + i);
    }
}

/* Log-probabilities of the tokens found->ids after the first positions of the last call, and of the likeliest ones; id
   -1 where the logits are no numbers. */
void rhapsode_score(const Model *m, const Rows *rows, int64_t positions, const Results *found) {
    for (int begin = 0; begin < positions; begin += LOGITS_AT_ONCE) {
        int count = positions - begin < LOGITS_AT_ONCE ? positions - begin : LOGITS_AT_ONCE;
        logits_of(m, rows, begin, count, m->logits);
        for (int i = 0; i < count; i++) score(m, m->logits + (int64_t)i * m->padded, found, begin + i);
    }
}

/* The same for one token by its logits (padded). */
void rhapsode_score_one(const Model *m, const float *logits, const Results *found) { score(m, logits, found, 0); }

/* y = W x + b for rows that lie one behind the other: so that it can be checked that a row does not depend on others. */
void rhapsode_apply(const Model *m, const Map *map, int64_t count, const float *x, float *y, int64_t y_stride) {
    apply(m, map, count, x, y, y_stride, 0);
}

void rhapsode_sizes(int32_t *sizes) {
    int32_t all[] = {PANEL, PAGE, LANES, LOGITS_AT_ONCE, sizeof(Model), sizeof(Rows), sizeof(Choice), sizeof(Results)};
    memcpy(sizes, all, sizeof all);
}
