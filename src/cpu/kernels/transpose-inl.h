// Query rows into lanes and back: transposes of whole tiles, made of squares of 4 x 4 floats (2 x 2
// doubles). A vector is filled with the same column piece of several rows, one for each of its
// 128-bit blocks; then interleaving within blocks is all the shuffling there is: 2 (1) an output
// vector, for vectors of any width. Knows no element types.
#if defined(FUSION_ATTENTION_TRANSPOSE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FUSION_ATTENTION_TRANSPOSE_INL_H_
#undef FUSION_ATTENTION_TRANSPOSE_INL_H_
#else
#define FUSION_ATTENTION_TRANSPOSE_INL_H_
#endif

#include <hwy/highway.h>

#include <cstring>

#include "src/cpu/kernels/kernel_table.h"

HWY_BEFORE_NAMESPACE();
namespace fusion_attention::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Rows and columns of a square, and so the elements of a block.
template <typename T>
inline constexpr int64_t kSide = 16 / sizeof(T);

// Block b of the result is the kBlock elements at p + b * stride.
template <int64_t kBlock, class D>
HWY_INLINE hn::Vec<D> LoadBlocks(D d, const hn::TFromD<D>* HWY_RESTRICT p, int64_t stride) {
  if constexpr (hn::MaxLanes(d) == kBlock) {
    return hn::LoadU(d, p);
  } else {
    const hn::Half<D> half;
    const auto low = LoadBlocks<kBlock>(half, p, stride);
    return hn::Combine(
        d, LoadBlocks<kBlock>(half, p + hn::MaxLanes(half) / kBlock * stride, stride), low);
  }
}

// The way back.
template <int64_t kBlock, class D>
HWY_INLINE void StoreBlocks(D d, hn::Vec<D> v, hn::TFromD<D>* HWY_RESTRICT p, int64_t stride) {
  if constexpr (hn::MaxLanes(d) == kBlock) {
    hn::StoreU(v, d, p);
  } else {
    const hn::Half<D> half;
    StoreBlocks<kBlock>(half, hn::LowerHalf(half, v), p, stride);
    StoreBlocks<kBlock>(half, hn::UpperHalf(half, v), p + hn::MaxLanes(half) / kBlock * stride,
                        stride);
  }
}

// Transposes the squares that block b of all vectors together are, for every b.
template <class D, class V>
HWY_INLINE void TransposeSquares(D d, V (&v)[4]) {
  const V even_lo = hn::InterleaveLower(d, v[0], v[2]), odd_lo = hn::InterleaveLower(d, v[1], v[3]);
  const V even_hi = hn::InterleaveUpper(d, v[0], v[2]), odd_hi = hn::InterleaveUpper(d, v[1], v[3]);
  v[0] = hn::InterleaveLower(d, even_lo, odd_lo);
  v[1] = hn::InterleaveUpper(d, even_lo, odd_lo);
  v[2] = hn::InterleaveLower(d, even_hi, odd_hi);
  v[3] = hn::InterleaveUpper(d, even_hi, odd_hi);
}
template <class D, class V>
HWY_INLINE void TransposeSquares(D d, V (&v)[2]) {
  const V low = hn::InterleaveLower(d, v[0], v[1]);
  v[1] = hn::InterleaveUpper(d, v[0], v[1]);
  v[0] = low;
}

// Every vector of the result passes through `change`.
template <typename T, class Change>
HWY_INLINE void TransposeRows(const T* HWY_RESTRICT src, int64_t ld, int64_t rows, int64_t dim,
                              const Change& change, T* HWY_RESTRICT dst) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = hn::Lanes(d);
  const int64_t block_rows = kBlockVectors * lanes;
  HWY_ALIGN T some[hn::MaxLanes(d) * kSide<T>];
  for (int64_t r = 0; r < rows; r += lanes) {
    for (int64_t c = 0; c < dim; c += kSide<T>) {
      const T* from = src + r * ld + c;
      int64_t stride = ld;
      if (r + lanes > rows) {
        std::memset(some, 0, sizeof(some));
        for (int64_t i = r; i < rows; ++i) {
          std::memcpy(some + (i - r) * kSide<T>, src + i * ld + c, 16);
        }
        from = some;
        stride = kSide<T>;
      }
      hn::Vec<decltype(d)> v[kSide<T>];
#pragma GCC unroll 4
      for (int64_t i = 0; i < kSide<T>; ++i) {
        v[i] = LoadBlocks<kSide<T>>(d, from + i * stride, kSide<T> * stride);
      }
      TransposeSquares(d, v);
#pragma GCC unroll 4
      for (int64_t i = 0; i < kSide<T>; ++i) {
        hn::Store(change(v[i]), d, dst + (c + i) * block_rows + r);
      }
    }
  }
}

template <typename T>
void Transpose(const T* src, int64_t ld, int64_t rows, int64_t dim, T factor, T* dst) {
  const hn::ScalableTag<T> d;
  const auto f = hn::Set(d, factor);
  TransposeRows(
      src, ld, rows, dim, [f](auto v) HWY_ATTR { return hn::Mul(v, f); }, dst);
}

template <typename T>
void TransposeBack(const T* HWY_RESTRICT src, int64_t rows, int64_t dim,
                   const T* HWY_RESTRICT row_factor, T* HWY_RESTRICT dst, int64_t ld) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = hn::Lanes(d);
  const int64_t block_rows = kBlockVectors * lanes;
  for (int64_t r = 0; r < rows; r += lanes) {
    const auto f = hn::LoadU(d, row_factor + r);
    for (int64_t c = 0; c < dim; c += kSide<T>) {
      hn::Vec<decltype(d)> v[kSide<T>];
#pragma GCC unroll 4
      for (int64_t i = 0; i < kSide<T>; ++i) {
        v[i] = hn::Mul(hn::Load(d, src + (c + i) * block_rows + r), f);
      }
      TransposeSquares(d, v);
#pragma GCC unroll 4
      for (int64_t i = 0; i < kSide<T>; ++i) {
        StoreBlocks<kSide<T>>(d, v[i], dst + (r + i) * ld + c, kSide<T> * ld);
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fusion_attention::cpu
HWY_AFTER_NAMESPACE();
#endif
