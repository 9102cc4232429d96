// The Python face of the library; with src/bindings/ the only files that know Python.
#include <cstdint>

#include "bindings/python.hpp"
#include "brisk/crc32c.hpp"

namespace {

namespace py = pybind11;
using namespace brisk::bindings;

std::uint32_t crc32c(const py::object& data, std::uint32_t value) {
  const PinnedBuffer buffer(data);
  const py::gil_scoped_release nogil;
  return brisk::crc32c(buffer.bytes(), value);
}

}  // namespace

PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
  m.doc() = "The compiled loader; see _native.pyi for types and meanings.";
  py::register_local_exception_translator(translate);
  bind_reading(m);
  bind_pieces(m);
  bind_devices(m);
  bind_parsing(m);
  m.def("crc32c", crc32c, py::arg("data"), py::arg("value") = 0,
        "Return the CRC32C of a buffer, continuing from `value`.");
  m.attr("CRC32C_IN_HARDWARE") = brisk::crc32c_in_hardware();
}
