// Which kernels this machine can run, and which of them it does.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace elmoe {

#ifdef ELMOE_X86
namespace avx512 {
extern const Kernels table;
}
namespace avx2_vnni {
extern const Kernels table;
}
namespace avx2 {
extern const Kernels table;
}
#endif
namespace portable {
extern const Kernels table;
}

namespace {

struct Usable {
  const Kernels *paths[4];
  const char *names[4];
  int count = 0;
  void add(const Kernels &path) {
    paths[count] = &path;
    names[count++] = path.name;
  }
};

const Usable &usable() {
  static const Usable found = [] {
    Usable u;
#ifdef ELMOE_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
    if (avx512)
      u.add(avx512::table);
    if (avx2 && __builtin_cpu_supports("avxvnni"))
      u.add(avx2_vnni::table);
    if (avx2)
      u.add(avx2::table);
#endif
    u.add(portable::table);
    return u;
  }();
  return found;
}

} // namespace

const char *const *usable_isas(int *count) {
  *count = usable().count;
  return usable().names;
}

const Kernels *find_kernels(const char *name) {
  for (int i = 0; i < usable().count; ++i)
    if (!std::strcmp(usable().names[i], name))
      return usable().paths[i];
  return nullptr;
}

const Kernels &kernels() {
  const char *wanted = std::getenv("ELMOE_ISA");
  if (!wanted || !*wanted)
    return *usable().paths[0];
  if (const Kernels *path = find_kernels(wanted))
    return *path;
  std::string names;
  for (int i = 0; i < usable().count; ++i)
    names += (i ? ", " : "") + std::string(usable().names[i]);
  throw std::invalid_argument("ELMOE_ISA=" + std::string(wanted) + " is not possible on this machine; it has " + names);
}

} // namespace elmoe
