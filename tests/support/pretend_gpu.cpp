// A device of type "cuda" that does nothing, so that autograd runs tensors that only say they are on
// a GPU (pretend_gpu.py). It has to be loaded before the first backward pass of a process.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>

#include <functional>
#include <map>
#include <mutex>
#include <new>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

struct PretendGuard final : c10::impl::DeviceGuardImplInterface {
  Device only() const { return Device(DeviceType::CUDA, 0); }
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return only(); }
  Device getDevice() const override { return only(); }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const override { return Stream(Stream::DEFAULT, only()); }
  Stream getDefaultStream(Device) const override { return Stream(Stream::DEFAULT, only()); }
  Stream exchangeStream(Stream) const override { return Stream(Stream::DEFAULT, only()); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
};

C10_REGISTER_GUARD_IMPL(CUDA, PretendGuard);

// Memory that is pinned in name: begin and size of each piece, by which it is known again. Never
// destroyed, for tensors may be freed as the last of a process.
std::mutex& pinned_lock = *new std::mutex;
auto& pinned = *new std::map<const char*, size_t, std::greater<>>;

void release_pinned(void* begin) {
  {
    const std::lock_guard<std::mutex> guard(pinned_lock);
    pinned.erase(static_cast<const char*>(begin));
  }
  c10::free_cpu(begin);
}

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* begin = c10::alloc_cpu(size);
    const std::lock_guard<std::mutex> guard(pinned_lock);
    pinned[static_cast<const char*>(begin)] = size;
    return {begin, begin, &release_pinned, Device(DeviceType::CPU)};
  }
  void copy_data(void* target, const void* source, std::size_t size) const override {
    default_copy_data(target, source, size);
  }
};

PinnedAllocator& pinned_allocator = *new PinnedAllocator;

struct PretendHooks final : at::CUDAHooksInterface {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  // The CPU draws the numbers.
  at::Generator getNewGenerator(DeviceIndex) const override {
    return at::detail::createCPUGenerator();
  }
  const at::Generator& getDefaultGenerator(DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  bool isPinnedPtr(const void* place) const override {
    const std::lock_guard<std::mutex> guard(pinned_lock);
    const auto found = pinned.lower_bound(static_cast<const char*>(place));
    return found != pinned.end() && place < found->first + found->second;
  }
  void deviceSynchronize(DeviceIndex) const override {}
};

// torch has looked its hooks up by now, and keeps the object: these take its place.
const auto* replaced = new (const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks()))
    PretendHooks();
static_assert(sizeof(PretendHooks) == sizeof(at::CUDAHooksInterface));

}  // namespace
