#include "brisk/own_code.hpp"

#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // Linux 5.14; older headers lack the name
#endif

namespace brisk {
namespace {

bool holds(const dl_phdr_info& object, const ElfW(Phdr) & segment, std::uintptr_t address) {
  const std::uintptr_t begin = object.dlpi_addr + segment.p_vaddr;
  return segment.p_type == PT_LOAD && address >= begin && address - begin < segment.p_memsz;
}

bool holds(const dl_phdr_info& object, std::uintptr_t address) {
  for (std::size_t i = 0; i < object.dlpi_phnum; ++i) {
    if (holds(object, object.dlpi_phdr[i], address)) return true;
  }
  return false;
}

int fault_in(dl_phdr_info* object, std::size_t, void* own) {
  if (!holds(*object, *static_cast<const std::uintptr_t*>(own))) return 0;
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  for (std::size_t i = 0; i < object->dlpi_phnum; ++i) {
    const ElfW(Phdr) & segment = object->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD || (segment.p_flags & PF_R) == 0) continue;
    const std::uintptr_t begin = object->dlpi_addr + segment.p_vaddr;
    const std::uintptr_t first = begin / page * page;
    ::madvise(reinterpret_cast<void*>(first), begin + segment.p_filesz - first, MADV_POPULATE_READ);
  }
  return 1;
}

}  // namespace

void fault_in_own_code() noexcept {
  static const int found = [] {
    auto own = reinterpret_cast<std::uintptr_t>(&fault_in_own_code);
    return ::dl_iterate_phdr(fault_in, &own);
  }();
  static_cast<void>(found);
}

}  // namespace brisk
