// What all parts of the bindings share: arguments become plain C++ values while the GIL is held;
// the work runs without it; the reading threads never see Python.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <system_error>
#include <vector>

#include "brisk/read_plan.hpp"

namespace brisk::bindings {

namespace py = pybind11;

using Progress = std::optional<py::function>;
using Checksums = std::vector<std::uint32_t>;

// Keeps a Python buffer in place for as long as this object lives. Needs the GIL at both ends.
class PinnedBuffer {
 public:
  explicit PinnedBuffer(const py::object& owner) {
    if (PyObject_GetBuffer(owner.ptr(), &view_, PyBUF_SIMPLE) != 0) throw py::error_already_set();
  }
  ~PinnedBuffer() { PyBuffer_Release(&view_); }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  [[nodiscard]] std::span<const std::byte> bytes() const noexcept {
    return {static_cast<const std::byte*>(view_.buf), static_cast<std::size_t>(view_.len)};
  }

 private:
  Py_buffer view_{};
};

// A class of brisk_native._types.
[[nodiscard]] py::object shared_type(const char* name);

// Accepts what os.open accepts, and fails as it does: TypeError, or ValueError for a NUL.
[[nodiscard]] std::filesystem::path to_path(const py::object& path);
[[nodiscard]] py::str from_path(const std::filesystem::path& path);
[[nodiscard]] py::str to_str(std::string_view utf8);

// What runs on the calling thread about every 20 ms: lets Ctrl-C in and reports progress. The
// result refers to `progress`.
[[nodiscard]] std::function<void(std::uint64_t bytes_done)> make_watch(const Progress& progress);

// Turns the library's exceptions into Python's.
void translate(std::exception_ptr raised);

// Takes a brisk_native.ReadSettings; its limits are checked by the library.
[[nodiscard]] ReadOptions to_options(const py::object& settings);

// Adds reading, pools and counters to the module.
void bind_reading(py::module_& m);
// Adds pools that are cut into chunks to the module.
void bind_pieces(py::module_& m);
// Adds headers, manifests and indexes to the module.
void bind_parsing(py::module_& m);
// Adds devices to the module.
void bind_devices(py::module_& m);

}  // namespace brisk::bindings
