// What `help` says of classes that callers make themselves. The same stands, at more length, in
// brisk_native's Python modules for machines without a compiler.
#pragma once

namespace brisk::bindings {

inline constexpr const char* kPoolText =
    R"(Memory that is faulted in once and read into often, cut into pieces on 2 MiB boundaries.

Pool(size_bytes, *, kind="auto", folder=None, populate=True)

size_bytes  from 1, rounded up to 2 MiB.
kind        what it is made of:
            "hugetlb"  2 MiB pages that the administrator reserved (vm.nr_hugepages)
            "tmpfs"    mounted huge=always: at `folder`, where all of it is reserved at once, or
                       else unseen, which takes CAP_SYS_ADMIN
            "private"  anonymous memory that asks for huge pages; no other process can attach
            "small"    a memfd of 4 KiB pages
            "auto"     the first of these that can be had; if that is "small", a warning of the
                       logger brisk_native says why
folder      of a tmpfs; for the kinds "tmpfs" and "auto".
populate    two threads fault the memory in, in the background; what is read into it earlier
            takes longer.

A piece goes back when the last view of it does. Thread-safe. A pool is a context manager, which
closes it at the end. Raises OSError or MemoryError if memory of the kind cannot be had, ValueError
for another kind or a size of 0. Once it is closed, all but `closed`, `kind` and `close` raise
ValueError.)";

}  // namespace brisk::bindings
