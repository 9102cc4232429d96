// Devices, as Python sees them.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <variant>

#include "bindings/python.hpp"
#include "brisk/cancel_token.hpp"
#include "brisk/device.hpp"
#include "brisk/device_load.hpp"
#include "brisk/pin_lease.hpp"

namespace brisk::bindings {
namespace {

using Cancel = std::shared_ptr<CancelToken>;

// The part of DLPack's first version that is needed to lend memory out; the numbers and the layout
// are its specification's. What takes the memory calls `deleter`, from any thread.
namespace dlpack {

constexpr std::int32_t kCpu = 1;
constexpr std::int32_t kCuda = 2;
constexpr std::uint8_t kUnsigned = 1;

struct Tensor {
  void* data;
  std::int32_t device_type;
  std::int32_t device_id;
  std::int32_t dimensions;
  std::uint8_t type_code;
  std::uint8_t type_bits;
  std::uint16_t type_lanes;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void* owner;
  void (*deleter)(ManagedTensor*);
};

// What a lent tensor keeps alive.
struct Loan {
  ManagedTensor managed;
  std::int64_t shape;
  SharedMemory memory;
};

}  // namespace dlpack

py::object device_type(const char* name) {
  return py::module_::import("brisk_native._device_types").attr(name);
}

class DeviceBuffer {
 public:
  explicit DeviceBuffer(SharedMemory memory) : memory_(std::move(memory)) {}

  [[nodiscard]] const SharedMemory& memory() const noexcept { return memory_; }
  [[nodiscard]] int ordinal() const noexcept { return memory_->context()->ordinal(); }
  [[nodiscard]] std::pair<int, int> dlpack_device() const {
    if (memory_->in_host_memory()) return {dlpack::kCpu, 0};
    return {dlpack::kCuda, ordinal()};
  }

 private:
  SharedMemory memory_;
};

std::unique_ptr<DeviceBuffer> make_buffer(int ordinal, std::uint64_t size) {
  const py::gil_scoped_release nogil;
  const DeviceAllocation wanted{.ordinal = ordinal, .size = size};
  return std::make_unique<DeviceBuffer>(std::move(allocate({&wanted, 1}).front()));
}

void end_unused_loan(PyObject* capsule) {
  // A capsule that was taken bears another name, and its taker ends the loan.
  if (PyCapsule_IsValid(capsule, "dltensor") == 0) return;
  auto* const managed =
      static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
  managed->deleter(managed);
}

// Lends the memory as one row of bytes. All that was loaded is there before anyone can ask, so
// there is no stream to wait for.
py::object lend(const DeviceBuffer& self, const py::object& /*stream*/,
                const py::object& /*max_version*/, const py::object& dl_device,
                const py::object& copy) {
  const std::pair<int, int> device = self.dlpack_device();
  if (!dl_device.is_none() && dl_device.cast<std::pair<int, int>>() != device) {
    throw py::buffer_error("the memory is lent where it lies, not moved to another device");
  }
  if (!copy.is_none() && copy.cast<bool>()) {
    throw py::buffer_error("the memory is lent, not copied");
  }
  auto loan = std::make_unique<dlpack::Loan>();
  loan->memory = self.memory();
  loan->shape = static_cast<std::int64_t>(loan->memory->size());
  loan->managed = {.tensor = {.data = reinterpret_cast<void*>(loan->memory->pointer()),
                              .device_type = device.first,
                              .device_id = device.second,
                              .dimensions = 1,
                              .type_code = dlpack::kUnsigned,
                              .type_bits = 8,
                              .type_lanes = 1,
                              .shape = &loan->shape,
                              .strides = nullptr,
                              .byte_offset = 0},
                   .owner = loan.get(),
                   .deleter = [](dlpack::ManagedTensor* lent) {
                     delete static_cast<dlpack::Loan*>(lent->owner);
                   }};
  PyObject* const capsule = PyCapsule_New(&loan->managed, "dltensor", end_unused_loan);
  if (capsule == nullptr) throw py::error_already_set();
  static_cast<void>(loan.release());
  return py::reinterpret_steal<py::object>(capsule);
}

py::bytes read_buffer(const DeviceBuffer& self, std::uint64_t offset,
                      const std::optional<std::uint64_t>& size) {
  const std::uint64_t all = self.memory()->size();
  const std::uint64_t wanted = size.value_or(offset <= all ? all - offset : 0);
  if (offset > all || wanted > all - offset) {
    throw py::index_error("the device memory ends after " + std::to_string(all) + " bytes");
  }
  const auto target = py::reinterpret_steal<py::bytes>(
      PyBytes_FromStringAndSize(nullptr, static_cast<py::ssize_t>(wanted)));
  if (!target) throw py::error_already_set();
  auto* const bytes = reinterpret_cast<std::byte*>(PyBytes_AS_STRING(target.ptr()));
  const py::gil_scoped_release nogil;
  self.memory()->read(offset, {bytes, wanted});
  return target;
}

// Keeps a buffer of Python's in place and pinned.
class PinnedMemory {
 public:
  PinnedMemory(const py::object& memory, int ordinal)
      : buffer_(std::make_unique<PinnedBuffer>(memory)), size_(buffer_->bytes().size()) {
    const py::gil_scoped_release nogil;
    lease_ = std::make_unique<PinLease>(std::make_shared<const DeviceContext>(ordinal),
                                        writable(*buffer_));
  }
  ~PinnedMemory() { close(); }
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

  // Pinning writes nothing; the driver takes addresses as if it would.
  [[nodiscard]] static std::span<std::byte> writable(const PinnedBuffer& buffer) {
    const std::span<const std::byte> bytes = buffer.bytes();
    return {const_cast<std::byte*>(bytes.data()), bytes.size()};
  }
  void close() {
    const auto buffer = std::move(buffer_);  // this call's: another thread may close, too
    auto lease = std::move(lease_);
    const py::gil_scoped_release nogil;
    lease.reset();
  }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  std::unique_ptr<PinnedBuffer> buffer_;
  std::size_t size_;
  std::unique_ptr<PinLease> lease_;
};

using PieceTuple =
    std::tuple<std::uint32_t, std::uint64_t, std::uint64_t, std::uint32_t, std::uint64_t>;
using Allocation = std::variant<std::pair<int, std::uint64_t>, const DeviceBuffer*>;

std::vector<Piece> to_pieces(const std::vector<PieceTuple>& tuples) {
  std::vector<Piece> pieces;
  pieces.reserve(tuples.size());
  for (const auto& [source, offset, size, allocation, allocation_offset] : tuples) {
    pieces.push_back({.source = source,
                      .offset = offset,
                      .size = size,
                      .allocation = allocation,
                      .allocation_offset = allocation_offset});
  }
  return pieces;
}

// Takes what the caller has already, and gets the rest.
std::vector<SharedMemory> to_memory(const std::vector<Allocation>& allocations) {
  std::vector<DeviceAllocation> wanted;
  for (const Allocation& one : allocations) {
    if (const auto* fresh = std::get_if<0>(&one)) {
      wanted.push_back({.ordinal = fresh->first, .size = fresh->second});
    } else if (std::get<1>(one) == nullptr) {
      throw py::type_error("an allocation is a DeviceBuffer or (number of the device, bytes)");
    }
  }
  std::vector<SharedMemory> fresh = [&] {
    const py::gil_scoped_release nogil;
    return allocate(wanted);
  }();
  std::vector<SharedMemory> memory;
  auto next = fresh.begin();
  for (const Allocation& one : allocations) {
    const auto* given = std::get_if<1>(&one);
    memory.push_back(given != nullptr ? (*given)->memory() : std::move(*next++));
  }
  return memory;
}

// Calls back on the calling thread: progress, then each milestone that was reached.
Watch watch_for_devices(const Progress& progress, const std::vector<std::size_t>& milestones,
                        const Progress& on_milestone) {
  return [&, next = std::size_t{0}](std::uint64_t bytes, std::size_t pieces) mutable {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (progress) (*progress)(bytes);
    for (; next < milestones.size() && milestones[next] <= pieces; ++next) {
      if (on_milestone) (*on_milestone)(milestones[next]);
    }
  };
}

py::tuple to_python(std::vector<SharedMemory> memory, const DeviceLoad& load) {
  py::list buffers;
  for (SharedMemory& one : memory) buffers.append(std::make_unique<DeviceBuffer>(std::move(one)));
  return py::make_tuple(
      buffers,
      device_type("DeviceLoadResult")(
          py::arg("bytes_read") = load.bytes_read, py::arg("direct_bytes") = load.bytes_direct,
          py::arg("bytes_copied") = load.bytes_copied, py::arg("host_bytes") = load.host_bytes,
          py::arg("pinned") = load.pinned, py::arg("seconds") = load.elapsed.count()));
}

py::tuple read_to_devices(const std::vector<py::object>& paths,
                          const std::vector<PieceTuple>& pieces,
                          const std::vector<Allocation>& allocations, const py::object& settings,
                          std::size_t host_bytes, unsigned streams,
                          std::optional<std::vector<FileChecksums>> expected,
                          const Progress& progress, const std::vector<std::size_t>& milestones,
                          const Progress& on_milestone, const Cancel& cancel) {
  std::vector<std::filesystem::path> files;
  for (const py::object& path : paths) files.push_back(to_path(path));
  if (!expected) expected.emplace(files.size());
  const DeviceLoadOptions options{.host_bytes = host_bytes,
                                  .streams = streams,
                                  .read = to_options(settings),
                                  .milestones = milestones,
                                  .watch = watch_for_devices(progress, milestones, on_milestone),
                                  .cancel = cancel.get()};
  const std::vector<Piece> wanted = to_pieces(pieces);
  std::vector<SharedMemory> memory = to_memory(allocations);
  const DeviceLoad load = [&] {
    const py::gil_scoped_release nogil;
    return brisk::read_to_devices(files, *expected, wanted, memory, options);
  }();
  return to_python(std::move(memory), load);
}

py::tuple copy_to_devices(const std::vector<py::object>& sources,
                          const std::vector<PieceTuple>& pieces,
                          const std::vector<Allocation>& allocations, std::size_t host_bytes,
                          unsigned streams, const Progress& progress,
                          const std::vector<std::size_t>& milestones, const Progress& on_milestone,
                          const Cancel& cancel) {
  std::vector<std::unique_ptr<PinnedBuffer>> buffers;
  std::vector<std::span<std::byte>> bytes;
  for (const py::object& source : sources) {
    buffers.push_back(std::make_unique<PinnedBuffer>(source));
    bytes.push_back(PinnedMemory::writable(*buffers.back()));
  }
  const DeviceLoadOptions options{.host_bytes = host_bytes,
                                  .streams = streams,
                                  .milestones = milestones,
                                  .watch = watch_for_devices(progress, milestones, on_milestone),
                                  .cancel = cancel.get()};
  const std::vector<Piece> wanted = to_pieces(pieces);
  std::vector<SharedMemory> memory = to_memory(allocations);
  const DeviceLoad load = [&] {
    const py::gil_scoped_release nogil;
    return brisk::copy_to_devices(bytes, wanted, memory, options);
  }();
  return to_python(std::move(memory), load);
}

py::tuple list_devices() {
  const std::vector<DeviceInfo> found = [] {
    const py::gil_scoped_release nogil;
    return brisk::devices();
  }();
  py::tuple all(found.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    all[i] = device_type("DeviceInfo")(py::arg("ordinal") = found[i].ordinal,
                                       py::arg("name") = to_str(found[i].name),
                                       py::arg("total_bytes") = found[i].total_bytes);
  }
  return all;
}

std::pair<std::uint64_t, std::uint64_t> device_memory(int ordinal) {
  const py::gil_scoped_release nogil;
  const DeviceRoom room = DeviceContext(ordinal).room();
  return {room.free_bytes, room.total_bytes};
}

void translate_device_errors(std::exception_ptr raised) {
  try {
    if (raised) std::rethrow_exception(raised);
  } catch (const DeviceMemoryError& error) {
    const py::object type = device_type("DeviceMemoryError");
    PyErr_SetObject(type.ptr(), type(to_str(error.call()), error.code(), to_str(error.name()),
                                     to_str(error.text()), error.ordinal(), error.wanted_bytes(),
                                     error.free_bytes())
                                    .ptr());
  } catch (const DeviceError& error) {
    const py::object type = device_type("DeviceError");
    PyErr_SetObject(
        type.ptr(),
        type(to_str(error.call()), error.code(), to_str(error.name()), to_str(error.text())).ptr());
  }
}

void bind_buffers(py::module_& m) {
  py::class_<DeviceBuffer>(m, "DeviceBuffer", py::release_gil_before_calling_cpp_dtor(),
                           "Memory on a device; freed with its last tensor.")
      .def(py::init(&make_buffer), py::arg("ordinal"), py::arg("size_bytes"))
      .def_property_readonly("ordinal", &DeviceBuffer::ordinal)
      .def_property_readonly("size_bytes",
                             [](const DeviceBuffer& self) { return self.memory()->size(); })
      .def_property_readonly("pointer",
                             [](const DeviceBuffer& self) { return self.memory()->pointer(); })
      .def("read", &read_buffer, py::arg("offset") = 0, py::arg("size_bytes") = py::none(),
           "Copy bytes back to the host.")
      .def("__dlpack__", &lend, py::kw_only(), py::arg("stream") = py::none(),
           py::arg("max_version") = py::none(), py::arg("dl_device") = py::none(),
           py::arg("copy") = py::none())
      .def("__dlpack_device__", &DeviceBuffer::dlpack_device);
  py::class_<PinnedMemory>(m, "PinnedMemory", "Host memory that devices copy from directly.")
      .def(py::init<const py::object&, int>(), py::arg("memory"), py::arg("ordinal") = 0)
      .def("close", &PinnedMemory::close, "Give the pinning back.")
      .def("__enter__", [](const py::object& self) { return self; })
      .def("__exit__", [](PinnedMemory& self, const py::args&) { self.close(); })
      .def_property_readonly("size_bytes", &PinnedMemory::size);
}

}  // namespace

void bind_devices(py::module_& m) {
  py::register_local_exception_translator(translate_device_errors);
  bind_buffers(m);
  const auto no_cancel = Cancel();
  m.def("devices", list_devices, "Return all devices; none where there is no driver.");
  m.def("device_memory", device_memory, py::arg("ordinal"), "Return free and total bytes.");
  m.def("read_to_devices", read_to_devices, py::arg("paths"), py::arg("pieces"),
        py::arg("allocations"), py::kw_only(), py::arg("settings"),
        py::arg("host_bytes") = kHostBytesDefault, py::arg("streams") = 2,
        py::arg("expected_crc32c") = py::none(), py::arg("progress") = py::none(),
        py::arg("milestones") = std::vector<std::size_t>(), py::arg("on_milestone") = py::none(),
        py::arg("cancel") = no_cancel, "Read pieces of files into devices' memory.");
  m.def("copy_to_devices", copy_to_devices, py::arg("sources"), py::arg("pieces"),
        py::arg("allocations"), py::kw_only(), py::arg("host_bytes") = kHostBytesDefault,
        py::arg("streams") = 2, py::arg("progress") = py::none(),
        py::arg("milestones") = std::vector<std::size_t>(), py::arg("on_milestone") = py::none(),
        py::arg("cancel") = no_cancel, "Copy pieces of host memory into devices' memory.");
}

}  // namespace brisk::bindings
