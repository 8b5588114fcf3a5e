// The online softmax's arithmetic, shared by every kernel that must agree to the bit.
//
// A partial result over some keys is (m, l, o): the largest score in log2 units, the sum of 2^(score - m), and the
// values weighted likewise. No key gives (-inf, 0, 0), which folds away exactly. Every product that the compiler
// could contract is written as the operation meant, so that two kernels round alike.
#pragma once
#include "gpu.cuh"

constexpr float LOG2E = 1.44269504f;

DEV float neg_inf() { return __uint_as_float(0xff800000u); }

// A maximum that may be subtracted: rows without any key have none.
DEV float finite_or_zero(float m) { return m == neg_inf() ? 0.f : m; }

// What both sides are multiplied by when the partial (m_next, ..) is folded into (m, ..).
struct Fold {
  float m, keep, add;
};

DEV Fold fold_weights(float m, float m_next) {
  float top = fmaxf(m, m_next), base = finite_or_zero(top);
  return {top, fast_exp2(m - base), fast_exp2(m_next - base)};
}

DEV float fold(const Fold& f, float a, float a_next) { return fmaf(a_next, f.add, a * f.keep); }

// To f32's own precision nearly: a soft-cap multiplies it by up to 50, where tanh.approx would be too coarse.
DEV float exact_tanh(float x) { return fmaf(-2.f, fast_rcp(1.f + fast_exp2(x * (2.f * LOG2E))), 1.f); }
