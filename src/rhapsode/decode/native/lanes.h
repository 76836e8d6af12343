/* Vectors of floats, as wide as the processor has them, in GCC's and Clang's own notation.

   Nothing here or in the files that include it may depend on how many rows are computed at once: every sum is made in one
   fixed order. So the compiler may not reorder (no -ffast-math); products and sums that it fuses, it fuses everywhere. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#define ROWS_AT_ONCE 6
#elif defined(__AVX__)
#define LANES 8
#define ROWS_AT_ONCE 2
#else
#define LANES 4
#define ROWS_AT_ONCE 4
#endif
#define PANEL (4 * LANES) /* outputs of a linear map that are computed at once */

typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline Lanes load(const float *x) { return *(const Lanes *)x; }
static inline void store(float *x, Lanes value) { *(Lanes *)x = value; }
static inline Lanes all(float x) { return x - (Lanes){0}; }
static inline Lanes where(Ints mask, Lanes yes, Lanes no) { return (Lanes)((mask & (Ints)yes) | (~mask & (Ints)no)); }
static inline Lanes larger(Lanes a, Lanes b) { return where(a > b, a, b); }

static inline float sum_of(Lanes x) {
    float part[LANES];
    store(part, x);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) part[i] += part[i + half];
    return part[0];
}

static inline float largest_of(Lanes x) {
    float largest = x[0];
    for (int i = 1; i < LANES; i++) largest = x[i] > largest ? x[i] : largest;
    return largest;
}

/* e^x within two units in the last place; 0 below -87. As 2^n e^r with |r| <= ln(2) / 2, ln(2) in two parts so that r is
   exact, and a polynomial for e^r (the coefficients of Cephes' expf). */
static inline Lanes exponential(Lanes x) {
    Ints positive = x > all(-87.0f);
    x = where(positive, x, all(-87.0f));
    x = where(x < all(88.0f), x, all(88.0f));
    Lanes n = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: rounds to the nearest integer, which is in the low bits */
    Ints power = (Ints)n << 23;
    n -= 12582912.0f;
    Lanes r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Lanes y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    return (Lanes)(((Ints)y + power) & positive);
}

static inline Lanes sigmoid(Lanes x) { return 1.0f / (1.0f + exponential(-x)); }
static inline Lanes hyperbolic_tangent(Lanes x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }
