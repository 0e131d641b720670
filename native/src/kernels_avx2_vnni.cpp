// AVX2 with AVX-VNNI.
#define ELMOE_ISA_NAMESPACE avx2_vnni
#define ELMOE_VNNI 1
#include "lanes_avx2.h"

#include "row_kernels.h"

#include "matmul_avx2.h"

namespace elmoe::avx2_vnni {

extern const Kernels table;
const Kernels table = ELMOE_KERNELS("avx2_vnni");

} // namespace elmoe::avx2_vnni
