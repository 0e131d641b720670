// AVX2 without VNNI: products of nibbles in 16 bits.
#define ELMOE_ISA_NAMESPACE avx2
#define ELMOE_VNNI 0
#include "lanes_avx2.h"

#include "row_kernels.h"

#include "matmul_avx2.h"

namespace elmoe::avx2 {

extern const Kernels table;
const Kernels table = ELMOE_KERNELS("avx2");

} // namespace elmoe::avx2
