/* The sums of sppbench.spp.statistics.channel_sums over a float32 tensor in memory, in one pass.

   Elements are widened to double as they are read: that costs less than the memory takes to deliver them. The square of
   a float is exact in double, and at most CHAIN squares are added up before their sum goes into a compensated one. The
   sum of squares is thus as good as exact, as the difference to the squared means needs it where a variance is small.
   Sums of channels need no such care: where a variance is small the elements are alike, and sums of alike floats are
   exact in double.

   The largest magnitude and the number of zeros come from the same bits, as integers: without its sign a float is in the
   order of its bits, and NaN is above infinity.

   Needs GCC 9 or Clang, whose vectors it uses, and no library: the functions that run threads are handed in. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define BYTES 64
#define widened _mm512_cvtps_pd
#define larger(a, b) (wide) _mm512_max_epi32((__m512i)(a), (__m512i)(b))
#elif defined(__AVX__)
#include <immintrin.h>
#define BYTES 32
#define widened _mm256_cvtps_pd /* GCC makes two instructions of the general form */
#if defined(__AVX2__)
#define larger(a, b) (wide) _mm256_max_epi32((__m256i)(a), (__m256i)(b))
#endif
#else
#define BYTES 16
#define widened(some) __builtin_convertvector(some, doubles)
#endif
#define LANES (BYTES / 8)
#define CHAIN 32
#define LONGEST (4 * LANES * (CHAIN - 4)) /* elements that make four chains that long, rests included */
#define WIDTH 2048  /* sums of columns that stay in the first-level cache beside what is read */
#define NARROW 256  /* shorter rows are joined to about this width */
#define LONG_RUN 24 /* runs of so many elements are summed one by one */
#define GRAIN 32768 /* elements that are worth a thread */
#define AHEAD 1024  /* elements from what is read to what is asked of the memory: the processor's own guess is shorter */

typedef double doubles __attribute__((vector_size(BYTES)));
typedef float floats __attribute__((vector_size(BYTES / 2)));
typedef int32_t words __attribute__((vector_size(BYTES / 2)));
typedef int32_t wide __attribute__((vector_size(BYTES))); /* the bits of as many floats as two of the others hold */
typedef int64_t counts __attribute__((vector_size(2 * BYTES)));
#define INLINE static inline __attribute__((always_inline))

#ifndef larger
INLINE wide larger(wide a, wide b)
{
    wide is = a > b;
    return (a & is) | (b & ~is);
}
#endif

INLINE int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Asks the memory for what lies AHEAD of the 4 LANES floats at x. There may be nothing: that is no error. */
INLINE void ask_ahead(const float *x)
{
    for (uintptr_t i = 0; i < 4 * LANES * sizeof *x; i += 64)
        __builtin_prefetch((const void *)((uintptr_t)x + AHEAD * sizeof *x + i));
}

INLINE doubles load(const float *x)
{
    floats some;
    memcpy(&some, x, sizeof some);
    return widened(some);
}

/* The first n < LANES floats at x, and zeros; what follows them is read, but not behind the end of the tensor. */
INLINE doubles load_first(const float *x, int64_t n, const float *end)
{
    floats some = {0};
    if (end - x >= LANES) {
        words bits, lane;
        memcpy(&bits, x, sizeof bits);
        for (int i = 0; i < LANES; i++)
            lane[i] = i;
        bits &= lane < (int32_t)n;
        memcpy(&some, &bits, sizeof some);
    } else {
        for (int64_t i = 0; i < n; i++)
            some[i] = x[i];
    }
    return widened(some);
}

INLINE double add_lanes(doubles x)
{
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            x[i] += x[i + half];
    return x[0];
}

/* A sum, and what its rounding has lost, lane by lane. */
typedef struct {
    doubles high, low;
} Compensated;

INLINE void add(Compensated *sum, doubles x)
{
    doubles high = sum->high + x, added = high - sum->high;
    sum->low += (sum->high - (high - added)) + (x - added);
    sum->high = high;
}

/* The bits of the largest magnitude, and the number of zeros since the chains of squares were emptied, lane by lane. */
typedef struct {
    wide largest, zeros;
} Bits;

/* What is of all channels together. The sum of squares is in four chains, so that they need not wait for each other,
   and in what was taken out of these. */
typedef struct {
    doubles chains[4];
    int64_t length;
    Compensated sum;
    Bits bits;
    counts zeros;
} Whole;

INLINE doubles square(doubles *chain, doubles x)
{
    *chain += x * x;
    return x;
}

INLINE void look(Bits *bits, const float *x)
{
    wide some;
    memcpy(&some, x, sizeof some);
    some &= INT32_MAX;
    bits->largest = larger(some, bits->largest);
    bits->zeros -= some == 0; /* a comparison that is true is -1 */
}

/* At the first n < 4 LANES floats, as `load_first`. */
INLINE void look_first(Bits *bits, const float *x, int64_t n, const float *end)
{
    for (; n >= 2 * LANES; n -= 2 * LANES, x += 2 * LANES)
        look(bits, x);
    if (!n)
        return;
    wide some = {0}, lane;
    for (int i = 0; i < 2 * LANES; i++)
        lane[i] = i;
    const wide there = lane < (int32_t)n;
    memcpy(&some, x, sizeof(float) * (size_t)(end - x >= 2 * LANES ? 2 * LANES : n));
    some &= there & INT32_MAX;
    bits->largest = larger(some, bits->largest);
    bits->zeros -= there & (some == 0);
}

/* Empties the chains if another `number` of elements would make them too long. */
INLINE void reserve(Whole *whole, int64_t number)
{
    const int64_t length = number / (4 * LANES) + 4;
    whole->length += length;
    if (whole->length > CHAIN) {
        doubles *q = whole->chains;
        add(&whole->sum, (q[0] + q[1]) + (q[2] + q[3]));
        memset(q, 0, sizeof whole->chains);
        whole->zeros += __builtin_convertvector(whole->bits.zeros, counts);
        memset(&whole->bits.zeros, 0, sizeof whole->bits.zeros);
        whole->length = length;
    }
}

/* Fills in the sum of squares, the number of zeros and, as a number, the bits of the largest magnitude. */
static void total(Whole *whole, double *squares, double *zeros, double *largest)
{
    int64_t number = 0;
    int32_t most = 0;
    reserve(whole, LONGEST);
    for (int i = 0; i < 2 * LANES; i++) {
        number += whole->zeros[i];
        most = most < whole->bits.largest[i] ? whole->bits.largest[i] : most;
    }
    *zeros = (double)number;
    *largest = most;
    Compensated *sum = &whole->sum;
    double high = 0, low = add_lanes(sum->low);
    for (int i = 0; i < LANES; i++) {
        double x = sum->high[i], next = high + x, added = next - high;
        low += (high - (next - added)) + (x - added);
        high = next;
    }
    *squares = isfinite(high) ? high + low : high;
}

INLINE void add_to(double *sums, doubles x)
{
    doubles sum;
    memcpy(&sum, sums, sizeof sum);
    sum += x;
    memcpy(sums, &sum, sizeof sum);
}

/* What stands behind the sums of channels, as TAIL of sppbench.spp.sums.batched says. */
enum { SQUARES, NONFINITE, ZEROS, SUBNORMAL, COUNT, SAMPLES, ABSMAX, TAIL };

/* The tensor (outer, channels, inner), the same for all threads. */
typedef struct {
    const float *x, *end;
    int64_t outer, channels, inner, parts, size_of_part;
    double *parts_at; /* of each part: its sums of channels, and what SQUARES and so on name */
} Task;

/* sums[j] += x[j]. `sums` is LANES longer than `width`. One row after the other: of several at once the memory would
   deliver a third as much, as its prefetching follows one stream. */
INLINE void add_row(const float *x, int64_t width, double *sums, Whole *whole, const float *end)
{
    for (int64_t start = 0; start < width; start += LONGEST) {
        int64_t stop = least(start + LONGEST, width), j = start;
        doubles q[4];
        reserve(whole, stop - start);
        Bits bits = whole->bits;
        memcpy(q, whole->chains, sizeof q); /* else the compiler keeps them in memory, as `sums` might be there */
        for (; j + 4 * LANES <= stop; j += 4 * LANES) {
            ask_ahead(x + j);
            look(&bits, x + j);
            look(&bits, x + j + 2 * LANES);
            for (int i = 0; i < 4; i++)
                add_to(sums + j + i * LANES, square(&q[i], load(x + j + i * LANES)));
        }
        look_first(&bits, x + j, stop - j, end);
        for (; j + LANES <= stop; j += LANES)
            add_to(sums + j, square(&q[0], load(x + j)));
        if (j < stop)
            add_to(sums + j, square(&q[1], load_first(x + j, stop - j, end)));
        memcpy(whole->chains, q, sizeof q);
        whole->bits = bits;
    }
}

/* Rows of channels · inner elements: first each column, then the columns of each channel. */
static void by_columns(const Task *task, int64_t first, int64_t last, double *sums, Whole *whole)
{
    const int64_t rows = last - first, inner = task->inner, row = task->channels * inner;
    const float *x = task->x + first * row;
    double columns[WIDTH + LANES];
    int64_t strip = least(row, WIDTH / inner * inner), joined = 1;
    if (strip == row) {
        int64_t whole = LANES; /* so many rows together are whole vectors */
        while (whole > 1 && row * whole / 2 % LANES == 0)
            whole /= 2;
        joined = NARROW / row / whole * whole;
        joined = joined ? joined : row < NARROW ? whole : 1;
        while (joined > 1 && rows < 4 * joined)
            joined /= 2;
    }
    for (int64_t start = 0; start < row; start += strip) {
        int64_t width = least(strip, row - start) * joined, rest = rows % joined;
        memset(columns, 0, sizeof(double) * (size_t)(width + LANES));
        for (int64_t r = 0; r + joined <= rows; r += joined)
            add_row(x + r * row + start, width, columns, whole, task->end);
        for (int64_t r = rows - rest; r < rows; r++)
            add_row(x + r * row + start, least(row, width), columns, whole, task->end);
        for (int64_t j = 0; j < width;)
            for (int64_t c = start / inner; j < width && c < task->channels; c++)
                for (int64_t stop = j + inner; j < stop; j++)
                    sums[c] += columns[j];
    }
}

/* Runs of elements of one channel, which lie one behind the other. */
static void by_runs(const Task *task, int64_t first, int64_t last, double *sums, Whole *whole)
{
    int64_t channel = first % task->channels;
    for (int64_t run = first; run < last; run++) {
        double sum = 0;
        for (int64_t start = 0; start < task->inner; start += LONGEST) {
            const float *x = task->x + run * task->inner + start;
            const int64_t number = least(LONGEST, task->inner - start);
            int64_t j = 0;
            doubles s[4] = {{0}, {0}, {0}, {0}}, q[4];
            reserve(whole, number);
            Bits bits = whole->bits;
            memcpy(q, whole->chains, sizeof q);
            for (; j + 4 * LANES <= number; j += 4 * LANES) {
                ask_ahead(x + j);
                look(&bits, x + j);
                look(&bits, x + j + 2 * LANES);
                for (int i = 0; i < 4; i++)
                    s[i] += square(&q[i], load(x + j + i * LANES));
            }
            look_first(&bits, x + j, number - j, task->end);
            for (; j + LANES <= number; j += LANES)
                s[0] += square(&q[0], load(x + j));
            if (j < number)
                s[1] += square(&q[1], load_first(x + j, number - j, task->end));
            memcpy(whole->chains, q, sizeof q);
            whole->bits = bits;
            sum += add_lanes((s[0] + s[1]) + (s[2] + s[3]));
        }
        sums[channel++] += sum;
        channel = channel < task->channels ? channel : 0;
    }
}

static int64_t count_nonfinite(const float *x, const float *end)
{
    int64_t number = 0;
    for (; x < end; x++)
        number += !isfinite(*x);
    return number;
}

static void sum_part(const Task *task, int64_t part)
{
    double *sums = task->parts_at + part * task->size_of_part;
    Whole whole;
    const int columns = task->inner < LONG_RUN && task->outer / task->parts >= 4;
    const int64_t units = (columns || task->inner == 1) ? task->outer : task->outer * task->channels;
    const int64_t elements = task->outer * task->channels * task->inner / units; /* of a row, or of a run */
    const int64_t first = units * part / task->parts, last = units * (part + 1) / task->parts;
    memset(&whole, 0, sizeof whole);
    memset(sums, 0, sizeof(double) * (size_t)task->channels);
    (columns || task->inner == 1 ? by_columns : by_runs)(task, first, last, sums, &whole);
    double *tail = sums + task->channels;
    total(&whole, tail + SQUARES, tail + ZEROS, tail + ABSMAX);
    /* What is not finite shows in the squares. */
    tail[NONFINITE] = isfinite(tail[SQUARES])
                          ? 0
                          : (double)count_nonfinite(task->x + first * elements, task->x + last * elements);
}

static void (*run_team)(void (*function)(void *), void *data, unsigned threads, unsigned flags);
static int (*number_of_thread)(void);
static int (*number_of_threads)(void);

/* Hands in GOMP_parallel, omp_get_thread_num and omp_get_num_threads of an OpenMP that is loaded. */
void use_openmp(void *parallel, void *thread, void *threads)
{
    memcpy(&run_team, &parallel, sizeof parallel);
    memcpy(&number_of_thread, &thread, sizeof thread);
    memcpy(&number_of_threads, &threads, sizeof threads);
}

static void run_thread(void *data)
{
    const Task *task = data;
    for (int64_t part = number_of_thread(); part < task->parts; part += number_of_threads())
        sum_part(task, part);
}

/* The parts one after the other. */
static void join_parts(const Task *task, double *out)
{
    const int64_t channels = task->channels;
    memcpy(out, task->parts_at, sizeof(double) * (size_t)(channels + TAIL));
    for (int64_t i = 1; i < task->parts; i++) {
        const double *part = task->parts_at + i * task->size_of_part, most = part[channels + ABSMAX];
        const double before = out[channels + ABSMAX];
        for (int64_t j = 0; j < channels + ABSMAX; j++)
            out[j] += part[j];
        out[channels + ABSMAX] = before < most ? most : before;
    }
}

/* Fills out (channels + TAIL) from x (outer, channels, inner), which has at least one element.

   The result depends on `threads`, and not on which of them does what. Returns 0, or 1 if there is no memory. */
int channel_sums(
    const float *x, int64_t outer, int64_t channels, int64_t inner, int64_t samples, int threads, double *out)
{
    const int64_t number = outer * channels * inner, count = outer * inner;
    double *tail = out + channels;
    if (channels == 1) { /* then there are rows to be joined, and to be divided among threads */
        outer *= inner;
        inner = 1;
    }
    const int64_t most = inner == 1 ? outer : outer * channels;
    Task task = {x, x + number, outer, channels, inner, 1, 0, out};
    if (run_team && number >= 2 * GRAIN)
        task.parts = least(least(threads, number / GRAIN), most);
    if (task.parts > 1) {
        task.size_of_part = (channels + TAIL + 15) / 16 * 16; /* no cache line is of two parts */
        task.parts_at = malloc(sizeof(double) * (size_t)(task.parts * task.size_of_part));
        if (!task.parts_at)
            return 1;
        run_team(run_thread, &task, (unsigned)threads, 0);
        join_parts(&task, out);
        free(task.parts_at);
    } else {
        sum_part(&task, 0);
    }
    const int32_t bits = (int32_t)tail[ABSMAX];
    float absmax;
    memcpy(&absmax, &bits, sizeof absmax);
    tail[ABSMAX] = absmax;
    tail[COUNT] = (double)count;
    tail[SAMPLES] = (double)samples;
    tail[SUBNORMAL] = NAN; /* is not counted in single precision */
    return 0;
}
