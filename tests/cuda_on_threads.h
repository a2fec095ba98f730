/* Runs CUDA kernels on CPU threads, a thread for each of a block's: for tests without a GPU. */
#define __CUDACC__
#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline

#include <algorithm>
#include <barrier>
#include <cmath>
#include <thread>
#include <vector>

using std::fmin;

struct Dimension { unsigned x; };
static thread_local Dimension threadIdx;
static Dimension blockIdx, blockDim, gridDim;
static std::barrier<> *block;
static double lanes[1024];
float scratch[1 << 16];

inline void __syncthreads() { block->arrive_and_wait(); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }

inline double __shfl_down_sync(unsigned, double x, int by) {
  lanes[threadIdx.x] = x;
  __syncthreads();
  const bool inside = threadIdx.x % 32 + by < 32;
  const double shifted = inside ? lanes[threadIdx.x + by] : x;
  __syncthreads();
  return shifted;
}

typedef void Kernel(const void *, const void *, int, const double *, double, void *, void *, float *,
                    int, int);

extern "C" void on_threads(Kernel *kernel, int blocks, int threads, const void *parameters,
                           const void *units, int count, const double *h, double direction,
                           void *sums, void *totals, float *work, int longest) {
  gridDim.x = blocks;
  blockDim.x = threads;
  std::barrier<> all(threads);
  block = &all;
  std::vector<std::thread> running;
  for (int lane = 0; lane < threads; lane++)
    running.emplace_back([=] {
      threadIdx.x = lane;
      for (int b = 0; b < blocks; b++) {
        __syncthreads();
        if (lane == 0) blockIdx.x = b;
        __syncthreads();
        kernel(parameters, units, count, h, direction, sums, totals, work, longest, 0);
      }
    });
  for (std::thread &thread : running) thread.join();
}
