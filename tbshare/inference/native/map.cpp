// Ranges of a file's read-only mapping as arrays of MLX, without a copy. Linux, MLX's CPU backend, mlx >= 0.32.4.
//
// How: on the CPU, MLX keeps an allocation's size in the eight bytes before its data and hands buffers around by the
// address of that size. A buffer that starts eight bytes before a tensor therefore has the tensor for its data. What
// those eight bytes say is read as a capacity at most (the neighbour's bytes: any number), never written: the pages
// are read-only, and since 0.32.4 an array made from an `allocator::Data` with a deleter of its own is not "owned",
// so no operation takes its memory for its own result.
//
// tbshare/inference/extension.py reads MLX_BUILT out of the compiled file before it loads it.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx/version.h"

#if MLX_VERSION_NUMERIC < 32004
#error "mlx before 0.32.4 may write into memory that it does not own"
#endif

namespace nb = nanobind;
namespace mlx_core = mlx::core;

namespace {

#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)
extern "C" __attribute__((used, visibility("default"))) const char tbshare_map_built[] =
    "MLX_BUILT=" TEXT(MLX_VERSION_MAJOR) "." TEXT(MLX_VERSION_MINOR) "." TEXT(MLX_VERSION_PATCH) ";";

constexpr size_t SIZE_PREFIX_BYTES = sizeof(size_t);

std::atomic<long> live_mappings{0};
std::atomic<long> live_arrays{0};

[[noreturn]] void raise_os_error() {
  PyErr_SetFromErrno(PyExc_OSError);
  throw nb::python_error();
}

// The pages of one file, read-only, with one readable page before them: a tensor at byte 0 has a size prefix too.
class Mapping {
 public:
  explicit Mapping(int descriptor) {
    struct stat status {};
    if (fstat(descriptor, &status) != 0) {
      raise_os_error();
    }
    if (!S_ISREG(status.st_mode) || status.st_size <= 0) {
      throw nb::value_error("only a regular file with bytes in it can be mapped");
    }
    size_ = static_cast<size_t>(status.st_size);
    page_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    reserved_ = page_ + (size_ + page_ - 1) / page_ * page_;
    void* reserved = mmap(nullptr, reserved_, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) {
      raise_os_error();
    }
    base_ = static_cast<char*>(reserved) + page_;
    if (mmap(base_, size_, PROT_READ, MAP_SHARED | MAP_FIXED, descriptor, 0) == MAP_FAILED) {
      int mapping_errno = errno;
      munmap(reserved, reserved_);
      errno = mapping_errno;
      raise_os_error();
    }
    ++live_mappings;
  }

  ~Mapping() {
    munmap(base_ - page_, reserved_);
    --live_mappings;
  }

  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  char* base() const { return base_; }
  size_t size() const { return size_; }
  size_t page() const { return page_; }

 private:
  char* base_ = nullptr;
  size_t size_ = 0;
  size_t page_ = 0;
  size_t reserved_ = 0;
};

// Checks a tensor's place in the file; returns its shape for MLX and its length in bytes.
std::pair<mlx_core::Shape, size_t> checked(
    const Mapping& mapping, uint64_t offset, const std::vector<int64_t>& lengths, size_t item_bytes) {
  mlx_core::Shape shape;
  uint64_t bytes = item_bytes;
  for (int64_t length : lengths) {
    if (length < 0 || length > std::numeric_limits<mlx_core::ShapeElem>::max()) {
      throw nb::value_error("a dimension is negative or above 2147483647");
    }
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(length), &bytes)) {
      throw nb::index_error("the shape has more bytes than there are addresses");
    }
    shape.push_back(static_cast<mlx_core::ShapeElem>(length));
  }
  if (bytes == 0) {
    throw nb::value_error("an array without elements has no bytes to map");
  }
  if (offset > mapping.size() || bytes > mapping.size() - offset) {
    throw nb::index_error("the range ends after the end of the file");
  }
  return {std::move(shape), static_cast<size_t>(bytes)};
}

struct Region {
  std::shared_ptr<Mapping> mapping;

  mlx_core::array array(uint64_t offset, const std::vector<int64_t>& lengths, mlx_core::Dtype dtype) const {
    size_t item_bytes = mlx_core::size_of(dtype);
    auto [shape, bytes] = checked(*mapping, offset, lengths, item_bytes);
    if (offset % item_bytes != 0) {
      throw nb::value_error("the offset is not a multiple of the element's size");
    }
    mlx_core::allocator::Buffer buffer(mapping->base() + offset - SIZE_PREFIX_BYTES);
    ++live_arrays;
    auto release = [held = mapping](mlx_core::allocator::Buffer) { --live_arrays; };
    mlx_core::array result(mlx_core::allocator::Data(buffer, std::move(release)), std::move(shape), dtype);
    result.set_status(mlx_core::array::Status::available);
    return result;
  }

  mlx_core::array copy(uint64_t offset, const std::vector<int64_t>& lengths, mlx_core::Dtype dtype) const {
    auto [shape, bytes] = checked(*mapping, offset, lengths, mlx_core::size_of(dtype));
    mlx_core::allocator::Data memory = mlx_core::allocator::malloc(bytes);
    mlx_core::allocator::Buffer buffer = memory.buffer();
    {
      nb::gil_scoped_release released;
      std::memcpy(buffer.raw_ptr(), mapping->base() + offset, bytes);
    }
    mlx_core::array result(std::move(memory), std::move(shape), dtype);
    result.set_status(mlx_core::array::Status::available);
    return result;
  }

  // Advice is for whole pages: the range is widened to them.
  int advise(uint64_t offset, uint64_t length, int advice) const {
    if (offset > mapping->size() || length > mapping->size() - offset) {
      throw nb::index_error("the range ends after the end of the file");
    }
    size_t before = offset % mapping->page();
    nb::gil_scoped_release released;
    return madvise(mapping->base() + offset - before, length + before, advice) == 0 ? 0 : errno;
  }

  void will_need(uint64_t offset, uint64_t length) const { done(advise(offset, length, MADV_WILLNEED)); }

  void populate(uint64_t offset, uint64_t length) const {
#ifdef MADV_POPULATE_READ
    done(advise(offset, length, MADV_POPULATE_READ));
#else
    done(advise(offset, length, MADV_WILLNEED));
#endif
  }

  bool holds(const mlx_core::array& array) const {
    if (!array.is_available()) {
      return false;
    }
    auto address = reinterpret_cast<uintptr_t>(array.data<char>());
    auto base = reinterpret_cast<uintptr_t>(mapping->base());
    return address >= base && address < base + mapping->size();
  }

 private:
  static void done(int error) {
    if (error != 0) {
      errno = error;
      raise_os_error();
    }
  }
};

// Last words: what a fatal signal writes, prepared while all is well (a handler may not allocate).
constexpr std::array<int, 5> FATAL_SIGNALS = {SIGBUS, SIGSEGV, SIGABRT, SIGFPE, SIGILL};
constexpr size_t LAST_WORDS_BYTES_MAX = 1024;
std::array<std::array<char, LAST_WORDS_BYTES_MAX>, FATAL_SIGNALS.size()> last_words;
std::array<size_t, FATAL_SIGNALS.size()> last_words_length{};
int last_words_descriptor = -1;

void say_last_words(int signal_number) {
  for (size_t index = 0; index < FATAL_SIGNALS.size(); ++index) {
    if (FATAL_SIGNALS[index] == signal_number) {
      ssize_t written = write(last_words_descriptor, last_words[index].data(), last_words_length[index]);
      static_cast<void>(written);
    }
  }
  _exit(1);
}

void on_fatal_signal(int signal_number, int descriptor, std::string_view line) {
  if (line.size() > LAST_WORDS_BYTES_MAX) {
    throw nb::value_error("the line is longer than 1024 bytes");
  }
  for (size_t index = 0; index < FATAL_SIGNALS.size(); ++index) {
    if (FATAL_SIGNALS[index] == signal_number) {
      std::memcpy(last_words[index].data(), line.data(), line.size());
      last_words_length[index] = line.size();
      last_words_descriptor = descriptor;
      struct sigaction action {};
      action.sa_handler = say_last_words;
      sigemptyset(&action.sa_mask);
      if (sigaction(signal_number, &action, nullptr) != 0) {
        raise_os_error();
      }
      return;
    }
  }
  throw nb::value_error("not a fatal signal");
}

}  // namespace

NB_MODULE(_map, module) {
  module.doc() = "Ranges of a file's read-only mapping as mlx.core.array, without a copy.";
  nb::module_::import_("mlx.core");
  nb::set_leak_warnings(false);  // arrays held by module globals at exit are MLX's to report
  nb::class_<Region>(module, "Region", "One regular file, mapped read-only as long as it or an array of it lives.")
      .def(
          "__init__",
          [](Region* self, int descriptor) { new (self) Region{std::make_shared<Mapping>(descriptor)}; },
          nb::arg("descriptor"),
          "Maps the open file; the descriptor may be closed afterwards. OSError, ValueError (empty, not regular).")
      .def_prop_ro("size", [](const Region& self) { return self.mapping->size(); }, "Bytes of the file.")
      .def("array", &Region::array, nb::arg("offset"), nb::arg("shape"), nb::arg("dtype"),
           "The elements at a byte offset, not copied. IndexError (past the end), ValueError (misaligned).")
      .def("copy", &Region::copy, nb::arg("offset"), nb::arg("shape"), nb::arg("dtype"),
           "The elements at a byte offset, copied; any alignment. IndexError (past the end).")
      .def("will_need", &Region::will_need, nb::arg("offset"), nb::arg("length"), "Starts reading ahead. OSError.")
      .def("populate", &Region::populate, nb::arg("offset"), nb::arg("length"),
           "Reads the range and maps its pages before it returns. OSError.")
      .def("holds", &Region::holds, nb::arg("array"), "Whether an evaluated array's data lies in this mapping.");
  module.def("live", [] { return nb::make_tuple(live_mappings.load(), live_arrays.load()); },
             "How many mappings, and arrays made without a copy, exist now.");
  module.def("on_fatal_signal", &on_fatal_signal, nb::arg("signal_number"), nb::arg("descriptor"), nb::arg("line"),
             "Makes a fatal signal write this line to the descriptor and end the process with status 1.");
}
