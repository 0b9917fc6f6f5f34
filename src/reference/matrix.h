// How the reference backend reads and writes the caller's tensors: any dtype, any strides, any
// alignment, as matrices of double.
#pragma once

#include <cstdint>
#include <vector>

#include "fusion_attention/tensor_view.h"

namespace fusion_attention::reference {

// Element `index` of a tensor; floating point dtypes only.
double Load(const void* data, DType dtype, int64_t index);
// Rounds once, to nearest even.
void Store(void* data, DType dtype, int64_t index, double value);

struct Matrix {
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<double> data;

  Matrix(int64_t rows, int64_t columns) : rows(rows), columns(columns), data(rows * columns) {}
  double* Row(int64_t row) { return data.data() + row * columns; }
  const double* Row(int64_t row) const { return data.data() + row * columns; }
};

// Rows [begin, begin + rows) of one head: [rows, columns].
Matrix ReadRows(const ConstTensorView& view, int64_t batch, int64_t head, int64_t begin,
                int64_t rows, int64_t columns);
// Makes rows [0, rows) of one head 0.
void ZeroRows(const TensorView& view, int64_t batch, int64_t head, int64_t rows, int64_t columns);
// The inverse of ReadRows.
void WriteRows(const Matrix& matrix, const TensorView& view, int64_t batch, int64_t head,
               int64_t begin);

// Each row of `left`, followed by the same row of `right`.
Matrix Beside(const Matrix& left, const Matrix& right);
// Columns [begin, begin + count).
Matrix Columns(const Matrix& matrix, int64_t begin, int64_t count);

double Dot(const double* a, const double* b, int64_t size);

}  // namespace fusion_attention::reference
