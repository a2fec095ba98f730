/* What kernels.c is written in, for the CPU and for CUDA: units, lanes, sums and passes. */

#ifdef __CUDACC__
#define HELPER static __device__ __forceinline__
#define PASS(name) extern "C" __global__ void name
#define EACH_UNIT(u, n) for (Index u = blockIdx.x; u < (n); u += gridDim.x)
#define LANES(i, n) for (Index i = threadIdx.x; i < (n); i += blockDim.x)
#define LEADER if (threadIdx.x == 0)
#define FETCH(from, n)
#define TOGETHER __syncthreads()
#define EXP expf
#define RESTRICT __restrict__
#else
#include <math.h>
#include <stdlib.h>
#define HELPER static inline __attribute__((always_inline))
#define PASS(name) void name
#define EACH_UNIT(u, n) _Pragma("omp for schedule(dynamic, 4)") for (Index u = 0; u < (n); u++)
#define LANES(i, n) _Pragma("GCC ivdep") for (Index i = 0; i < (n); i++)
#define LEADER
#ifdef _OPENMP
#include <omp.h>
#define THREAD omp_get_thread_num()
#define THREADS omp_get_num_threads()
#else
#define THREAD 0
#define THREADS 1
#endif
#define FETCH(from, n) \
  for (Index i = 0; i < (n) && i < AHEAD; i += 16) __builtin_prefetch((from) + i)
#define TOGETHER
#define EXP exponential
#define RESTRICT restrict
#endif

typedef long long Index;

enum { AHEAD = 512 }; /* how much is fetched ahead; the processor follows longer runs itself */

/* Long runs are taken in blocks that stay in the first cache, in loops of few streams each: stores
   to one array hold up loads from another whose address has the same last 12 bits. */
#ifdef __CUDACC__
enum { BLOCK = 1024 };
#else
enum { BLOCK = 64 };
#endif
#define SAME_BATCH(u, v) (units[u].batch == units[v].batch)
#define BLOCKS(b, m, n) \
  for (Index b = 0, m; m = (n) - b < BLOCK ? (n) - b : BLOCK, b < (n); b += BLOCK)

typedef struct {
  float *weight;
  const float *gradient;
  float *state[4];
  const float *step;
  Index rows, length; /* length of a row; 1 where the rule is element-wise */
  Index first_unit, units;
  Index numbers; /* where its hyperparameters begin among those of all */
} Parameter;

typedef struct {
  Index parameter, row, end, batch;
  Index offset; /* of its first element in the work of its batch; -1 where there is none */
} Unit;

typedef struct {
  double a, b, c;
} Sums;

#ifdef __CUDACC__

HELPER double total(double x) {
  static __shared__ double parts[32];
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_down_sync(0xffffffffu, x, lane);
  __syncthreads(); /* the parts of an earlier total have been read */
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  for (int warp = 0; warp < blockDim.x / 32; warp++) x += parts[warp];
  return x;
}

HELPER float inverse_root(float x) { return x < 1.17549435e-38f ? 0 : rsqrtf(x); }

#else

HELPER double total(double x) { return x; }

/* 1/sqrt(x) to 2 units in the last place, 0 for 0 and subnormal numbers: Newton's method runs
   beside the divider, which is the bottleneck of every step with a root and a quotient. */
HELPER float inverse_root(float x) {
  union { float value; int bits; } y = {x > 3.402823466e38f ? 3.402823466e38f : x};
  float half = 0.5f * y.value;
  y.bits = 0x5f375a86 - (y.bits >> 1);
  y.value *= 1.5f - half * y.value * y.value;
  y.value *= 1.5f - half * y.value * y.value;
  y.value *= 1.5f - half * y.value * y.value;
  return x < 1.17549435e-38f ? 0 : y.value;
}

/* Aligned, so that the same elements share a SIMD register in every run and round alike. */
HELPER float *scratch_of(Index length) {
  length = (length < BLOCK ? BLOCK : length) * sizeof(float);
  return (float *)aligned_alloc(64, (length + 63) / 64 * 64);
}

/* exp(x) to 2 units in the last place; libm's does not vectorise without -ffast-math. */
HELPER float exponential(float x) {
  x = x < 88.0f ? x : 88.0f;
  x = x > -87.0f ? x : -87.0f;
  float whole = rintf(x * 1.44269504f);
  float y = x - whole * 0.693145752f - whole * 1.42860677e-6f;
  float series = 1.0f + y * (1.0f + y * (0.5f + y * (0.166666567f + y * (0.0416664939f
               + y * (0.00833336078f + y * 0.00139304355f)))));
  union { int bits; float value; } power = {((int)whole + 127) << 23};
  return series * power.value;
}

#endif

HELPER int usable(float gradient) { return gradient * gradient <= 3.402823466e38f; }
HELPER float divided(float x, float divisor) { return divisor == 0 ? 0 : x / divisor; }
HELPER float root(float x) { return x * inverse_root(x); }
HELPER float corrected(double beta, double step) { return (float)(1 / (1 - pow(beta, step))); }
HELPER float limited(float x, float bound) {
  x = x < bound ? x : bound;
  return x > -bound ? x : -bound;
}
HELPER float sign(float x) { return (float)((x > 0) - (x < 0)); }

/* Passes: what kernels.py launches. All have the same arguments; direction is -1 to maximize. */

#define ARGUMENTS                                                                               \
  (const Parameter *parameters, const Unit *units, int count, const double *numbers,         \
   double direction, Sums *sums, Sums *totals, float *work, int longest, int threads)

#ifdef __CUDACC__
#define OVER_UNITS(name, ...)                                                                   \
  PASS(name) ARGUMENTS {                                                                        \
    extern __shared__ float scratch[];                                                          \
    EACH_UNIT(u, count) {                                                                       \
      const Unit *unit = units + u;                                                             \
      const Parameter *p = parameters + unit->parameter;                                        \
      const double *h = numbers + p->numbers;                                                   \
      __VA_ARGS__                                                                               \
    }                                                                                           \
  }
#else
#define OVER_UNITS(name, ...)                                                                   \
  PASS(name) ARGUMENTS {                                                                        \
    _Pragma("omp parallel num_threads(threads) if (count > 1)") {                          \
      float *scratch = scratch_of(longest);                                \
      EACH_UNIT(u, count) {                                                                     \
        const Unit *unit = units + u;                                                           \
        const Parameter *p = parameters + unit->parameter;                                      \
        const double *h = numbers + p->numbers;                                                 \
        __VA_ARGS__                                                                             \
      }                                                                                         \
      free(scratch);                                                                            \
    }                                                                                           \
  }
#endif

/* A step that needs the norms of the whole parameter. The CPU takes a batch of parameters at a time
   and goes back over it in reverse, while its end is still in the cache; CUDA launches each pass. */
#ifdef __CUDACC__
#define RELATIVE(name, sums_of_unit, ...)                                                       \
  OVER_UNITS(name##_sums, Sums of_unit = sums_of_unit; LEADER sums[u] = of_unit;)               \
  OVER_UNITS(name, Sums all = totals[unit->parameter]; __VA_ARGS__)

OVER_UNITS(totals_of_parameters, if (unit->row == 0) {
  double a = 0, b = 0, c = 0;
  LANES(i, p->units) {
    a += sums[p->first_unit + i].a;
    b += sums[p->first_unit + i].b;
    c += sums[p->first_unit + i].c;
  }
  Sums all = {total(a), total(b), total(c)};
  LEADER totals[unit->parameter] = all;
})
#else
HELPER Sums all_of(const Parameter *p, const Sums *sums) {
  Sums all = {0, 0, 0};
  for (Index u = p->first_unit; u < p->first_unit + p->units; u++) {
    all.a += sums[u].a;
    all.b += sums[u].b;
    all.c += sums[u].c;
  }
  return all;
}

#define RELATIVE(name, sums_of_unit, ...)                                                       \
  PASS(name) ARGUMENTS {                                                                        \
    _Pragma("omp parallel num_threads(threads) if (count > 1)") {                               \
      float *scratch = scratch_of(longest);                                                     \
      Index first = 0, last;                                                                    \
      for (; first < count; first = last) {                                                     \
        for (last = first; last < count && SAME_BATCH(first, last); last++) {}                  \
        const Index from = first + (last - first) * THREAD / THREADS;                           \
        const Index to = first + (last - first) * (THREAD + 1) / THREADS;                       \
        for (Index u = from; u < to; u++) {                                                     \
          const Unit *unit = units + u;                                                         \
          const Parameter *p = parameters + unit->parameter;                                    \
          const double *h = numbers + p->numbers;                                               \
          sums[u] = sums_of_unit;                                                               \
        }                                                                                       \
        _Pragma("omp barrier")                                                                  \
        Index known = -1;                                                                       \
        Sums all = {0, 0, 0};                                                                   \
        for (Index u = to - 1; u >= from; u--) {                                                \
          const Unit *unit = units + u;                                                         \
          const Parameter *p = parameters + unit->parameter;                                    \
          const double *h = numbers + p->numbers;                                               \
          if (unit->parameter != known) all = all_of(p, sums);                                  \
          known = unit->parameter;                                                              \
          __VA_ARGS__                                                                           \
        }                                                                                       \
        _Pragma("omp barrier") /* work is used again */                                         \
      }                                                                                         \
      free(scratch);                                                                            \
    }                                                                                           \
  }
#endif
