// Small convolutional networks without gradients, one image after another, everything in the cache of a core.
//
// A network is a list of steps. The result of a step is a bias, plus a map, plus a sum of convolutions; it is kept as it
// is, or through an activation, or both. All maps of an image lie in one piece of memory, with channels last and zeros
// around them. fused.py makes the arrays that come in here; offsets and strides are counted in floats.

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int LANES = 16, BLOCK = 14;  // 28 of the 32 registers are sums
#elif defined(__AVX2__)
constexpr int LANES = 8, BLOCK = 6;  // 12 of 16
#else
constexpr int LANES = 4, BLOCK = 6;  // not known to be fast anywhere
#endif

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));

enum Activation { NONE, ELU, GATE };

struct Place {
    int64_t first, row, pixel;  // the first pixel, or -1 for nowhere; from row to row; from pixel to pixel

    int64_t at(int64_t y, int64_t x) const { return first + y * row + x * pixel; }
};

struct Step {
    int64_t rows, columns;          // of the grid of results
    int64_t first_term, terms;      // what is summed
    int64_t groups, vectors;        // output channels: groups of one or two vectors
    int64_t weights;                // of all terms, [group][term][tap][in channel][vector][lane]
    int64_t bias;
    Place added, raw, active;       // what is added; where the result is kept, and its activation
    int64_t activation;
};

struct Term {
    Place source;
    int64_t channels;
    int64_t first_tap, taps;
};

struct Whole {  // a map that is copied in or out, without what is around it
    Place place;
    int64_t rows, columns, channels;
};

struct Program {
    const Step *steps;
    const Term *terms;
    const int64_t *taps;     // from the pixel itself
    const float *constants;  // weights and biases
    int64_t count;
    Whole input, output;
};

static inline Vector load(const float *from) {
    Vector v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

static inline void store(float *to, Vector v) { std::memcpy(to, &v, sizeof v); }

static inline Vector all(float x) {
    Vector v;
    for (int i = 0; i < LANES; ++i) v[i] = x;
    return v;
}

// exp(x) for |x| <= 80: 2^n times a polynomial in the rest. A NaN stays one.
static inline Vector exponential(Vector x) {
    const float shift = 12582912.0f;  // 1.5 * 2^23: the sum's last bits are the nearest integer
    Vector shifted = x * 1.44269504f + shift;
    Vector n = shifted - shift;
    Vector r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;  // Cephes' expf
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    Vector result = (Vector)((Bits)p + ((Bits)shifted << 23));
    return x == x ? result : x;
}

static inline Vector within(Vector x, float low, float high) {  // comparisons that leave a NaN as it is
    x = x < all(low) ? all(low) : x;
    return x > all(high) ? all(high) : x;
}

static inline Vector elu(Vector x) {
    Vector below = exponential(within(x, -80.0f, 0.0f)) - all(1.0f);
    return x > all(0.0f) ? x : below;
}

// tanh(a) * sigmoid(b), with one division.
static inline Vector gate(Vector a, Vector b) {
    Vector e = exponential(within(a + a, -40.0f, 40.0f)), f = exponential(within(-b, -40.0f, 40.0f));
    return (e - all(1.0f)) / ((e + all(1.0f)) * (f + all(1.0f)));
}

// The results of P pixels next to each other and one group of V vectors of channels.
template <int P, int V>
static inline void block(const Program &program, const Step &step, float *memory, int64_t y, int64_t x, int64_t group,
                         const float *weights) {
    Vector sums[P][V];
    const int64_t channel = group * V * LANES;
    for (int v = 0; v < V; ++v) {
        const Vector bias = load(program.constants + step.bias + channel + v * LANES);
        for (int p = 0; p < P; ++p) sums[p][v] = bias;
    }
    for (int64_t t = 0; t < step.terms; ++t) {
        const Term &term = program.terms[step.first_term + t];
        const float *here = memory + term.source.at(y, x);
        const int64_t pixel = term.source.pixel;
        for (int64_t k = 0; k < term.taps; ++k) {
            const float *source = here + program.taps[term.first_tap + k];
            for (int64_t c = 0; c < term.channels; ++c, weights += V * LANES) {
                Vector w[V];
                for (int v = 0; v < V; ++v) w[v] = load(weights + v * LANES);
                for (int p = 0; p < P; ++p) {
                    const float s = source[p * pixel + c];
                    for (int v = 0; v < V; ++v) sums[p][v] += s * w[v];
                }
            }
        }
    }
    if (step.added.first >= 0) {
        const float *added = memory + step.added.at(y, x) + channel;
        for (int p = 0; p < P; ++p)
            for (int v = 0; v < V; ++v) sums[p][v] += load(added + p * step.added.pixel + v * LANES);
    }
    if (step.raw.first >= 0) {
        float *raw = memory + step.raw.at(y, x) + channel;
        for (int p = 0; p < P; ++p)
            for (int v = 0; v < V; ++v) store(raw + p * step.raw.pixel + v * LANES, sums[p][v]);
    }
    if (step.activation == ELU) {
        float *active = memory + step.active.at(y, x) + channel;
        for (int p = 0; p < P; ++p)
            for (int v = 0; v < V; ++v) store(active + p * step.active.pixel + v * LANES, elu(sums[p][v]));
    }
    if (V == 2 && step.activation == GATE) {
        float *active = memory + step.active.at(y, x) + group * LANES;
        for (int p = 0; p < P; ++p) store(active + p * step.active.pixel, gate(sums[p][0], sums[p][V - 1]));
    }
}

template <int V>
static void grid(const Program &program, const Step &step, float *memory) {
    int64_t size = 0;  // of a group's weights
    for (int64_t t = 0; t < step.terms; ++t) {
        const Term &term = program.terms[step.first_term + t];
        size += term.taps * term.channels * V * LANES;
    }
    for (int64_t y = 0; y < step.rows; ++y)
        for (int64_t group = 0; group < step.groups; ++group) {
            const float *weights = program.constants + step.weights + group * size;
            int64_t x = 0;
            for (; x + BLOCK <= step.columns; x += BLOCK) block<BLOCK, V>(program, step, memory, y, x, group, weights);
            for (; x + BLOCK / 2 <= step.columns; x += BLOCK / 2)
                block<BLOCK / 2, V>(program, step, memory, y, x, group, weights);
            for (; x + 2 <= step.columns; x += 2) block<2, V>(program, step, memory, y, x, group, weights);
            for (; x < step.columns; ++x) block<1, V>(program, step, memory, y, x, group, weights);
        }
}

static void copy_in(const Whole &map, float *memory, const float *from) {
    for (int64_t y = 0; y < map.rows; ++y)
        for (int64_t x = 0; x < map.columns; ++x, from += map.channels)
            std::memcpy(memory + map.place.at(y, x), from, sizeof(float) * map.channels);
}

static void copy_out(const Whole &map, const float *memory, float *to) {
    for (int64_t y = 0; y < map.rows; ++y)
        for (int64_t x = 0; x < map.columns; ++x, to += map.channels)
            std::memcpy(to, memory + map.place.at(y, x), sizeof(float) * map.channels);
}

extern "C" int lanes() { return LANES; }

// Runs the network on so many inputs, one after the other. `memory` holds all maps, and zeros around them.
extern "C" void run(const Program *program, const float *inputs, float *outputs, int64_t count, float *memory) {
    const Whole &input = program->input, &output = program->output;
    for (int64_t i = 0; i < count; ++i) {
        copy_in(input, memory, inputs + i * input.rows * input.columns * input.channels);
        for (int64_t s = 0; s < program->count; ++s) {
            const Step &step = program->steps[s];
            step.vectors == 2 ? grid<2>(*program, step, memory) : grid<1>(*program, step, memory);
        }
        copy_out(output, memory, outputs + i * output.rows * output.columns * output.channels);
    }
}
