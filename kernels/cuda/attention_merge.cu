// Folds the partials of a row's key ranges, in order, into the attention's output.
//
// grid (merges, kv_heads), 128 threads: four dims of one row each at a time. Partials as attention wrote them:
// part_o [slot, kv_head, part_rows, D] f32, part_ml [slot, kv_head, part_rows, 2] (m in log2 units, l); `scales` as
// in AttentionArgs.
// Bytes: slots * rows * (4 D + 8) read, rows * 2 D written. Bound: device memory (mostly the L2 cache: the partials
// were just written), or latency where there are few rows.
#include "softmax.cuh"

// The slots of one row tile of one sequence.
struct MergeItem {
  int token;  // row of `out` of the sequence's first new token
  int row0;   // first row among the sequence's (tokens * G) rows
  int rows;   // 0: nothing to do
  int slot;   // first slot
  int slots;
};

KERNEL __launch_bounds__(128)
    attention_merge(const MergeItem* items, const float* part_o, const float* part_ml, const float* scales, bf16* out,
                    int out_stride, int group, int part_rows, int dim) {
  launch_dependents();
  MergeItem item = items[blockIdx.x];
  int head = blockIdx.y, heads = gridDim.y;
  for (int c = threadIdx.x; c < item.rows * (dim / 4); c += 128) {
    int row = c / (dim / 4), d = c % (dim / 4) * 4;
    float m = neg_inf(), l = 0.f;
    float4 o = {0.f, 0.f, 0.f, 0.f};
#pragma unroll 4
    for (int s = 0; s < item.slots; s++) {
      uint64_t at = ((uint64_t)(item.slot + s) * heads + head) * part_rows + row;
      float2 ml = *(const float2*)(part_ml + at * 2);
      float4 x = *(const float4*)(part_o + at * dim + d);
      Fold f = fold_weights(m, ml.x);
      m = f.m;
      l = fold(f, l, ml.y);
      o = {fold(f, o.x, x.x), fold(f, o.y, x.y), fold(f, o.z, x.z), fold(f, o.w, x.w)};
    }
    float scale = l > 0.f ? (scales ? scales[heads + head] : 1.f) / l : 0.f;
    int r = item.row0 + row, h = head * group + r % group;
    *(uint2*)(out + (uint64_t)(item.token + r / group) * out_stride + h * dim + d) = {
        pack_bf16(o.x * scale, o.y * scale), pack_bf16(o.z * scale, o.w * scale)};
  }
}
TWIN_EXPORT(attention_merge)
