// Activations of a feed-forward layer, gated and plain:
//   gated: out[row][i] = f(x[row][i]) * x[row][columns + i]   (SwiGLU, GeGLU)
//   plain: out[row][i] = f(x[row][i])
// f: SiLU, GELU by tanh, GELU by erf; one kernel each.
//
// x [rows, 2 * columns] or [rows, columns] bf16; out [rows, columns] bf16; columns % 8 == 0. Computed in f32.
// Grid (rows, columns / 2048 rounded up), 16 bytes a thread.
// Bytes: rows * columns * 6, or 4 for the plain form. Bound: memory.
// Expect sm_80 *: LDG.128
// Expect sm_90 *: LDG.128
#include "vector.cuh"

constexpr float LOG2E = 1.4426950408889634f;

// 1 / (1 + e^-x)
DEV float sigmoid(float x) { return fast_rcp(1.0f + fast_exp2(-LOG2E * x)); }

struct Silu {
  DEV float of(float x) { return x * sigmoid(x); }
};

// x/2 * (1 + tanh z) = x * sigmoid(2z)
struct GeluTanh {
  DEV float of(float x) { return x * sigmoid(1.5957691216057308f * (x + 0.044715f * x * x * x)); }
};

// Abramowitz and Stegun 7.1.26: |error of erf| < 1.5e-7
struct GeluErf {
  DEV float of(float x) {
    float z = fabsf(x) * 0.70710678118654752f, t = fast_rcp(1.0f + 0.3275911f * z);
    float poly = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    float tail = 0.5f * poly * fast_exp2(-LOG2E * z * z);  // the normal distribution beyond |x|
    return x * (x < 0.0f ? tail : 1.0f - tail);
  }
};

template <class F, bool GATED>
DEV void activate(const bf16* x, bf16* out, uint32_t columns) {
  launch_dependents();
  uint64_t row = blockIdx.x;
  uint32_t column = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
  if (column >= columns) return;
  const bf16* from = x + row * columns * (GATED ? 2 : 1) + column;
  uint4 first = stream8(from), second = {};
  if (GATED) second = stream8(from + columns);
  Eight a = unpack8(first), b = unpack8(second);
#pragma unroll
  for (int j = 0; j < 8; j++) a.x[j] = GATED ? F::of(a.x[j]) * b.x[j] : F::of(a.x[j]);
  store8(out + row * columns + column, a);
}

#define ACTIVATION(name, f, gated)                                                 \
  KERNEL __launch_bounds__(256) name(const bf16* x, bf16* out, uint32_t columns) { \
    activate<f, gated>(x, out, columns);                                           \
  }                                                                                \
  TWIN_EXPORT(name)

ACTIVATION(silu_gated, Silu, true)
ACTIVATION(silu_plain, Silu, false)
ACTIVATION(gelu_tanh_gated, GeluTanh, true)
ACTIVATION(gelu_tanh_plain, GeluTanh, false)
ACTIVATION(gelu_erf_gated, GeluErf, true)
ACTIVATION(gelu_erf_plain, GeluErf, false)
