// Chooses the instance of `matmul_rows` for a number of rows at run time. Included inside the namespace of a path,
// which defines kMaxRows and matmul_rows.

using MatmulRows = void (*)(WeightBits, const uint8_t *, const uint8_t *, int, int, const PackedRows &, float *,
                            size_t);

template <WeightBits::Kind K, int... M> inline MatmulRows pick(int rows, std::integer_sequence<int, M...>) {
  static constexpr MatmulRows by_rows[] = {matmul_rows<K, M + 1>...};
  return by_rows[rows - 1];
}

inline void matmul(WeightBits bits, int rows, const uint8_t *msb, const uint8_t *lsb, int blocks, int tiles,
                   const PackedRows &x, float *y, size_t y_stride) {
  constexpr std::make_integer_sequence<int, kMaxRows> counts;
  const MatmulRows run = bits.kind == WeightBits::msb      ? pick<WeightBits::msb>(rows, counts)
                         : bits.kind == WeightBits::merged ? pick<WeightBits::merged>(rows, counts)
                         : bits.kind == WeightBits::masked ? pick<WeightBits::masked>(rows, counts)
                                                           : pick<WeightBits::mxfp4>(rows, counts);
  run(bits, msb, lsb, blocks, tiles, x, y, y_stride);
}
