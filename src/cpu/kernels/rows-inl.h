// Between the caller's tensors and packed tiles: pack (any dtype, any strides -> padded rows of the
// arithmetic type) and store (the way back, one rounding to nearest even). How an element type
// converts is known here alone.
#if defined(FUSION_ATTENTION_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FUSION_ATTENTION_ROWS_INL_H_
#undef FUSION_ATTENTION_ROWS_INL_H_
#else
#define FUSION_ATTENTION_ROWS_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <cstring>

#include "src/cpu/kernels/kernel_table.h"

HWY_BEFORE_NAMESPACE();
namespace fusion_attention::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The stored form of an element as an unsigned integer, and its conversions to and from vectors.
struct Float16 {
  using Bits = uint16_t;
  template <class D>
  static HWY_INLINE hn::Vec<D> Widen(D d, hn::Vec<hn::Rebind<Bits, D>> v) {
#if HWY_TARGET == HWY_SSE4
    // There is no instruction, and Highway 1.0.3's emulation knows neither infinity nor NaN.
    const hn::RebindToSigned<D> di;
    const auto bits = hn::PromoteTo(di, v);
    const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(di, 0x8000)));
    const auto size = hn::ShiftLeft<13>(hn::And(bits, hn::Set(di, 0x7FFF)));
    // Times 2^112 moves the exponent's bias from 15 to 127 and makes subnormals normal; exact.
    const auto moved = hn::BitCast(di, hn::Mul(hn::BitCast(d, size), hn::Set(d, 0x1p112f)));
    const auto special = hn::Gt(size, hn::Set(di, (0x7C00 << 13) - 1));
    const auto value = hn::IfThenElse(special, hn::Or(size, hn::Set(di, 0x7F800000)), moved);
    return hn::BitCast(d, hn::Or(value, sign));
#else
    return hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, D>(), v));
#endif
  }
  template <class D>
  static HWY_INLINE void Narrow([[maybe_unused]] D d, hn::Vec<D> v, Bits* p) {
#if HWY_TARGET == HWY_SSE4
    // There is no instruction, and Highway 1.0.3's emulation truncates subnormal results.
    const hn::RebindToSigned<D> di;
    const hn::Rebind<uint16_t, D> d16;
    const auto bits = hn::BitCast(di, v);
    const auto sign = hn::And(hn::ShiftRight<16>(bits), hn::Set(di, 0x8000));
    const auto size = hn::And(bits, hn::Set(di, 0x7FFFFFFF));
    // Normal: move the exponent's bias from 127 to 15, then round the 13 surplus bits to nearest
    // even.
    const auto odd = hn::And(hn::ShiftRight<13>(size), hn::Set(di, 1));
    const auto rebiased = hn::Add(hn::Sub(size, hn::Set(di, 112 << 23)), hn::Set(di, 0xFFF));
    const auto normal = hn::ShiftRight<13>(hn::Add(rebiased, odd));
    // Subnormal: one unit in the last place of 0.5 is 2^-24, a step of float16; adding it rounds.
    const auto half = hn::Set(d, 0.5f);
    const auto small =
        hn::Sub(hn::BitCast(di, hn::Add(hn::BitCast(d, size), half)), hn::BitCast(di, half));
    const auto huge = hn::IfThenElse(hn::Gt(size, hn::Set(di, 0x7F800000)), hn::Set(di, 0x7E00),
                                     hn::Set(di, 0x7C00));
    auto result = hn::IfThenElse(hn::Lt(size, hn::Set(di, 0x38800000)), small, normal);
    result = hn::IfThenElse(hn::Gt(size, hn::Set(di, 0x477FFFFF)), huge, result);
    hn::StoreU(hn::DemoteTo(d16, hn::Or(result, sign)), d16, p);
#else
    const hn::Rebind<hwy::float16_t, D> d16;
    hn::StoreU(hn::DemoteTo(d16, v), d16, reinterpret_cast<hwy::float16_t*>(p));
#endif
  }
};

struct BFloat16 {
  using Bits = uint16_t;
  template <class D>
  static HWY_INLINE hn::Vec<D> Widen(D d, hn::Vec<hn::Rebind<Bits, D>> v) {
    const hn::RebindToUnsigned<D> d32;
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, v)));
  }
  // To nearest even by integer arithmetic; NaN keeps its sign and becomes quiet.
  template <class D>
  static HWY_INLINE void Narrow(D d, hn::Vec<D> v, Bits* p) {
    const hn::RebindToUnsigned<D> d32;
    const hn::RebindToSigned<D> di32;
    const hn::Rebind<uint16_t, D> d16;
    const auto bits = hn::BitCast(d32, v);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1u));
    const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(d32, 0x7FFFu)));
    const auto quiet = hn::Or(bits, hn::Set(d32, 0x400000u));
    const auto is_nan = hn::RebindMask(d32, hn::IsNaN(v));
    const auto high = hn::ShiftRight<16>(hn::IfThenElse(is_nan, quiet, rounded));
    hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di32, high)), d16, p);
    (void)d;
  }
};

template <typename T>
struct Same {
  using Bits = T;
  template <class D>
  static HWY_INLINE hn::Vec<D> Widen(D, hn::Vec<D> v) {
    return v;
  }
  template <class D>
  static HWY_INLINE void Narrow(D d, hn::Vec<D> v, Bits* p) {
    hn::StoreU(v, d, p);
  }
};

// Rows are asked for this many before they are read or written, also behind the last one, where the
// next tile's are: the hardware looks ahead only to the end of a page, 16 rows of 64 floats.
inline constexpr int64_t kRowsAhead = 16;

// Where row `later` lies, counted from `row`. An unsigned number, because no pointer may leave its
// tensor, and the stride of a tensor's only row may be any number.
HWY_INLINE uintptr_t AddressOf(const char* row, int64_t later, int64_t row_stride, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(row) + static_cast<uintptr_t>(later) *
                                                static_cast<uintptr_t>(row_stride) *
                                                static_cast<uintptr_t>(bytes);
}

// Pointers may have any alignment: vectors load unaligned, single elements go through memcpy.
template <class Element, typename T>
bool PackAs(const SourceRows& src, int64_t rows, int64_t dim, T* HWY_RESTRICT dst, int64_t ld) {
  using Bits = typename Element::Bits;
  const hn::ScalableTag<T> d;
  const hn::Rebind<Bits, decltype(d)> stored;
  const int64_t lanes = hn::Lanes(d);
  const auto zero = hn::Zero(d);
  // Stays +-0 while every value is finite, as 0 * inf and 0 * NaN are NaN. Gathered by OR, because
  // a chain of multiply-adds would wait four cycles for each vector.
  auto poison = zero;
  HWY_ALIGN Bits some[hn::MaxLanes(d)];
  const int64_t whole = src.channel_stride == 1 ? dim / lanes * lanes : 0;
  constexpr int64_t kBytes = sizeof(Bits);
  for (int64_t r = 0; r < rows; ++r) {
    const char* row = static_cast<const char*>(src.data) + r * src.row_stride * kBytes;
    T* HWY_RESTRICT to = dst + r * ld;
    const uintptr_t ahead = AddressOf(row, kRowsAhead, src.row_stride, kBytes);  // forward x 1.005
    for (int64_t c = 0; c < whole; c += lanes) {
      hwy::Prefetch(reinterpret_cast<const char*>(ahead + static_cast<uintptr_t>(c * kBytes)));
      const auto v =
          Element::Widen(d, hn::LoadU(stored, reinterpret_cast<const Bits*>(row + c * kBytes)));
      poison = hn::Or(poison, hn::Mul(v, zero));
      hn::Store(v, d, to + c);
    }
    for (int64_t c = whole; c < ld; c += lanes) {
      std::memset(some, 0, sizeof(some));
      for (int64_t i = 0; i < HWY_MIN(lanes, dim - c); ++i) {
        std::memcpy(some + i, row + (c + i) * src.channel_stride * kBytes, kBytes);
      }
      const auto v = Element::Widen(d, hn::Load(stored, some));
      poison = hn::Or(poison, hn::Mul(v, zero));
      hn::Store(v, d, to + c);
    }
  }
  return hn::AllTrue(d, hn::Eq(poison, zero));
}

template <class Element, typename T>
void StoreAs(const T* HWY_RESTRICT src, int64_t ld, int64_t rows, int64_t dim, T factor,
             const SinkRows& dst) {
  using Bits = typename Element::Bits;
  const hn::ScalableTag<T> d;
  const int64_t lanes = hn::Lanes(d);
  const auto scale = hn::Set(d, factor);
  HWY_ALIGN Bits some[hn::MaxLanes(d)];
  const int64_t whole = dst.channel_stride == 1 ? dim / lanes * lanes : 0;
  constexpr int64_t kBytes = sizeof(Bits);
  for (int64_t r = 0; r < rows; ++r) {
    char* row = static_cast<char*>(dst.data) + r * dst.row_stride * kBytes;
    const uintptr_t ahead = AddressOf(row, kRowsAhead, dst.row_stride, kBytes);  // forward x 1.01
    const T* HWY_RESTRICT from = src + r * ld;
    for (int64_t c = 0; c < whole; c += lanes) {
      // To write, into L2.
      __builtin_prefetch(reinterpret_cast<char*>(ahead + static_cast<uintptr_t>(c * kBytes)), 1, 2);
      Element::Narrow(d, hn::Mul(hn::Load(d, from + c), scale),
                      reinterpret_cast<Bits*>(row + c * kBytes));
    }
    for (int64_t c = whole; c < dim; c += lanes) {
      Element::Narrow(d, hn::Mul(hn::Load(d, from + c), scale), some);
      for (int64_t i = 0; i < HWY_MIN(lanes, dim - c); ++i) {
        std::memcpy(row + (c + i) * dst.channel_stride * kBytes, some + i, kBytes);
      }
    }
  }
}

inline bool Pack(const SourceRows& src, int64_t rows, int64_t dim, float* dst, int64_t ld) {
  if (src.dtype == DType::kFloat16) return PackAs<Float16>(src, rows, dim, dst, ld);
  if (src.dtype == DType::kBFloat16) return PackAs<BFloat16>(src, rows, dim, dst, ld);
  return PackAs<Same<float>>(src, rows, dim, dst, ld);
}
inline bool Pack(const SourceRows& src, int64_t rows, int64_t dim, double* dst, int64_t ld) {
  return PackAs<Same<double>>(src, rows, dim, dst, ld);
}

inline void StoreRows(const float* src, int64_t ld, int64_t rows, int64_t dim, float factor,
                      const SinkRows& dst) {
  if (dst.dtype == DType::kFloat16) return StoreAs<Float16>(src, ld, rows, dim, factor, dst);
  if (dst.dtype == DType::kBFloat16) return StoreAs<BFloat16>(src, ld, rows, dim, factor, dst);
  StoreAs<Same<float>>(src, ld, rows, dim, factor, dst);
}
inline void StoreRows(const double* src, int64_t ld, int64_t rows, int64_t dim, double factor,
                      const SinkRows& dst) {
  StoreAs<Same<double>>(src, ld, rows, dim, factor, dst);
}

// Whole aligned vectors of T itself go past the caches: a store into a line that is not there reads
// it first, and pushes out what the pass will need.
template <typename T>
void StreamRows(const T* HWY_RESTRICT src, int64_t ld, int64_t rows, int64_t dim,
                const SinkRows& dst) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = hn::Lanes(d);
  const bool whole = reinterpret_cast<uintptr_t>(dst.data) % (sizeof(T) * lanes) == 0 &&
                     dst.row_stride % lanes == 0 && dst.channel_stride == 1 && dim % lanes == 0;
  if (SizeOf(dst.dtype) != sizeof(T) || !whole) return StoreRows(src, ld, rows, dim, T{1}, dst);
  T* HWY_RESTRICT to = static_cast<T*>(dst.data);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < dim; c += lanes) {
      hn::Stream(hn::Load(d, src + r * ld + c), d, to + r * dst.row_stride + c);
    }
  }
  hwy::FlushStream();
}

template <typename T>
void AddRows(const T* HWY_RESTRICT more, int64_t count, T* HWY_RESTRICT sums) {
  const hn::ScalableTag<T> d;
  for (int64_t i = 0; i < count; i += hn::Lanes(d)) {
    hn::Store(hn::Add(hn::Load(d, sums + i), hn::Load(d, more + i)), d, sums + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fusion_attention::cpu
HWY_AFTER_NAMESPACE();
#endif
