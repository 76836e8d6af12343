/* What Python hands over: a model's weights and the memory of the texts. kernel.py has the same structures. */

#include "lanes.h"

#define PAGE 32 /* tokens of a page of the attention caches */

/* A linear map: weight by panels, [out / PANEL][in][PANEL], and bias, both with zeros up to a whole panel. */
typedef struct {
    int32_t in, out;
    const float *weight, *bias;
} Map;

enum { RELU, TANH, GATED };

/* A block; for the plain model, all of it. Maps that are not there have out = 0. The norms' weights and 1 / sqrt(key_dim)
   are in the maps behind them; a map in two steps is what folding leaves as two. In a page lie, from page_offset on, keys
   [heads][key_dim][PAGE] and values [heads][PAGE][padded_value]. */
typedef struct {
    int32_t hidden, cell, heads, key_dim, value_dim, padded_value;
    int64_t hidden_offset, page_offset; /* in floats, in a text's memory and in a page */
    Map input, gate, recurrent, output, look[2], attended, wide, narrow;
} Block;

/* The copy head; query.out = 0 for none. In a page lie keys [size][PAGE] and token ids [PAGE]; the key of the token that
   comes next is in the text's memory. */
typedef struct {
    int32_t size;
    int64_t hidden_offset, page_offset;
    Map query, key, gate;
} Copies;

typedef struct {
    int32_t plain, vocab, width, num_blocks, pair_rows, padded; /* padded: vocab up to a whole panel */
    int64_t stride;                       /* floats from one position to the next in x, u, a and b */
    const float *inputs, *pairs;          /* what a token, and a pair of tokens, puts in */
    const Block *blocks;
    Map head[2];
    Copies copies;
    float *x, *u, *a, *b;                 /* scratch: (positions, stride) */
    float *logits, *scores, *weights;     /* (rows at once, padded), (longest text), (padded) */
    int32_t *slot, *place, *order;        /* (positions), (positions), (padded) */
    const float **from;                   /* (positions): what a product reads, */
    float **to;                           /* and where it writes */
} Model;

/* What is kept of each text, by slot. */
typedef struct {
    float *hidden;                  /* (slots, hidden_stride): hidden vectors, block after block, and the next key */
    float **pages;                  /* (slots, most_pages) */
    int32_t *length, *token;        /* how many tokens were read; the last of them, 0 before the first */
    int64_t hidden_stride, most_pages;
} Rows;

/* How the next token of a text is chosen, by slot. bias, seen, written: (vocab), or NULL where nothing needs them. */
typedef struct {
    double temperature, top_p, min_p, repetition, frequency, presence;
    uint64_t seed, drawn; /* drawn: how many numbers were drawn */
    const float *bias;
    uint8_t *seen;    /* whether a token is in the text */
    int32_t *written; /* how often it was drawn */
    int32_t top_k, alternatives;
} Choice;

/* What came of it, one for each text of a call; alternatives: (texts, most). id -1: the logits are no numbers. */
typedef struct {
    int32_t *ids;
    double *log_probabilities;
    int32_t most, *alternatives;
    double *their_log_probabilities;
} Results;
