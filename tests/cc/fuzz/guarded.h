// Memory of an exact size between pages that cannot be touched. One access beyond the end that is
// not at a page's edge stays unseen, so a buffer is pushed against either the page after it or the
// page before it. Works without any sanitizer.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>

namespace fusion_attention::fuzz {

enum class GuardSide { kBefore, kAfter };

class Guarded {
 public:
  // `bytes` bytes of value `fill`. With kAfter the first byte is aligned to the size's own factors
  // of two only.
  Guarded(size_t bytes, GuardSide side, unsigned char fill) : bytes_(bytes) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    inner_bytes_ = (bytes + page - 1) / page * page;
    mapped_bytes_ = inner_bytes_ + 2 * page;
    void* const map = mmap(nullptr, mapped_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) std::abort();
    inner_ = static_cast<char*>(map) + page;
    Protect(PROT_READ | PROT_WRITE);
    data_ = side == GuardSide::kBefore ? inner_ : inner_ + inner_bytes_ - bytes;
    std::memset(data_, fill, bytes);
  }
  Guarded(Guarded&& other) noexcept { *this = static_cast<Guarded&&>(other); }
  Guarded& operator=(Guarded&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    std::swap(inner_bytes_, other.inner_bytes_);
    std::swap(mapped_bytes_, other.mapped_bytes_);
    std::swap(inner_, other.inner_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~Guarded() {
    if (inner_ == nullptr) return;
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    munmap(inner_ - page, mapped_bytes_);
  }

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  // From here on a write is a crash.
  void Seal() { Protect(PROT_READ); }

 private:
  void Protect(int protection) {
    if (inner_bytes_ > 0 && mprotect(inner_, inner_bytes_, protection) != 0) std::abort();
  }

  size_t bytes_ = 0;
  size_t inner_bytes_ = 0;
  size_t mapped_bytes_ = 0;
  char* inner_ = nullptr;
  char* data_ = nullptr;
};

}  // namespace fusion_attention::fuzz
