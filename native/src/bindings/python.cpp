#include "bindings/python.hpp"

#include <exception>
#include <string>

#include "brisk/errors.hpp"
#include "brisk/pool.hpp"

namespace brisk::bindings {
namespace {

void set_os_error(const std::error_code& code, const py::object& filename) {
  const py::handle os_error(PyExc_OSError);
  // Called with an errno, OSError itself picks the right subclass, such as FileNotFoundError.
  const py::object error = os_error(code.value(), code.message(), filename);
  PyErr_SetObject(py::type::of(error).ptr(), error.ptr());
}

void set_shared_error(const char* name, const py::object& error) {
  PyErr_SetObject(shared_type(name).ptr(), error.ptr());
}

}  // namespace

py::object shared_type(const char* name) {
  return py::module_::import("brisk_native._types").attr(name);
}

std::filesystem::path to_path(const py::object& path) {
  PyObject* encoded = nullptr;
  if (PyUnicode_FSConverter(path.ptr(), &encoded) == 0) throw py::error_already_set();
  return {std::string(py::reinterpret_steal<py::bytes>(encoded))};
}

py::str from_path(const std::filesystem::path& path) {
  const std::string& text = path.native();
  PyObject* decoded =
      PyUnicode_DecodeFSDefaultAndSize(text.data(), static_cast<py::ssize_t>(text.size()));
  if (decoded == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(decoded);
}

py::str to_str(std::string_view utf8) { return py::str(utf8.data(), utf8.size()); }

std::function<void(std::uint64_t)> make_watch(const Progress& progress) {
  return [&progress](std::uint64_t bytes_done) {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (progress) (*progress)(bytes_done);
  };
}

void translate(std::exception_ptr raised) {
  try {
    if (raised) std::rethrow_exception(raised);
  } catch (const std::filesystem::filesystem_error& error) {
    set_os_error(error.code(), from_path(error.path1()));
  } catch (const std::system_error& error) {
    set_os_error(error.code(), py::none());
  } catch (const ShortRead& error) {
    set_shared_error("ShortReadError", shared_type("ShortReadError")(error.what()));
  } catch (const ChecksumMismatch& error) {
    set_shared_error("ChecksumError",
                     shared_type("ChecksumError")(from_path(error.path()), error.chunk(),
                                                  error.offset(), error.detail()));
  } catch (const PoolFull& error) {
    set_shared_error("PoolFullError",
                     shared_type("PoolFullError")(error.needed_bytes(), error.free_bytes(),
                                                  error.largest_bytes()));
  } catch (const Cancelled& error) {
    set_shared_error("ReadCancelledError", shared_type("ReadCancelledError")(error.bytes_done()));
  }
}

}  // namespace brisk::bindings
