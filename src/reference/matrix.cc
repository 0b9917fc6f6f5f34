// Element access for the reference backend. Through memcpy, because a view may have any alignment.
#include "src/reference/matrix.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>

#include "src/base/convert.h"

namespace fusion_attention::reference {
namespace {

template <typename T>
T LoadAs(const void* data, int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(data) + index * int64_t{sizeof(T)}, sizeof(T));
  return value;
}

template <typename T>
void StoreAs(void* data, int64_t index, T value) {
  std::memcpy(static_cast<char*>(data) + index * int64_t{sizeof(T)}, &value, sizeof(T));
}

int64_t ElementIndex(const Strides& strides, int64_t batch, int64_t head, int64_t token,
                     int64_t channel) {
  return batch * strides.batch + head * strides.head + token * strides.token +
         channel * strides.channel;
}

}  // namespace

double Load(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kFloat16:
      return Widen(kFloat16Format, LoadAs<uint16_t>(data, index));
    case DType::kBFloat16:
      return Widen(kBFloat16Format, LoadAs<uint16_t>(data, index));
    case DType::kFloat32:
      return LoadAs<float>(data, index);
    case DType::kFloat64:
      return LoadAs<double>(data, index);
    default:
      assert(false);
      return 0;
  }
}

void Store(void* data, DType dtype, int64_t index, double value) {
  switch (dtype) {
    case DType::kFloat16:
      return StoreAs(data, index, Narrow(kFloat16Format, value));
    case DType::kBFloat16:
      return StoreAs(data, index, Narrow(kBFloat16Format, value));
    case DType::kFloat32:
      return StoreAs(data, index, static_cast<float>(value));
    case DType::kFloat64:
      return StoreAs(data, index, value);
    default:
      assert(false);
  }
}

Matrix ReadRows(const ConstTensorView& view, int64_t batch, int64_t head, int64_t begin,
                int64_t rows, int64_t columns) {
  Matrix matrix(rows, columns);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      matrix.Row(r)[c] =
          Load(view.data, view.dtype, ElementIndex(view.strides, batch, head, begin + r, c));
    }
  }
  return matrix;
}

void ZeroRows(const TensorView& view, int64_t batch, int64_t head, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      Store(view.data, view.dtype, ElementIndex(view.strides, batch, head, r, c), 0);
    }
  }
}

void WriteRows(const Matrix& matrix, const TensorView& view, int64_t batch, int64_t head,
               int64_t begin) {
  for (int64_t r = 0; r < matrix.rows; ++r) {
    for (int64_t c = 0; c < matrix.columns; ++c) {
      Store(view.data, view.dtype, ElementIndex(view.strides, batch, head, begin + r, c),
            matrix.Row(r)[c]);
    }
  }
}

Matrix Beside(const Matrix& left, const Matrix& right) {
  Matrix both(left.rows, left.columns + right.columns);
  for (int64_t r = 0; r < both.rows; ++r) {
    std::copy_n(left.Row(r), left.columns, both.Row(r));
    std::copy_n(right.Row(r), right.columns, both.Row(r) + left.columns);
  }
  return both;
}

Matrix Columns(const Matrix& matrix, int64_t begin, int64_t count) {
  Matrix part(matrix.rows, count);
  for (int64_t r = 0; r < part.rows; ++r) std::copy_n(matrix.Row(r) + begin, count, part.Row(r));
  return part;
}

double Dot(const double* a, const double* b, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace fusion_attention::reference
