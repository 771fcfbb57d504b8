// A torch device named "pretended" whose memory is the host's. It computes by the CPU's kernels, and
// refuses what a GPU refuses: tensors of two devices in one operation, and the CPU's generators.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <malloc.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>

namespace {

using at::Tensor;
constexpr auto TYPE = c10::DeviceType::PrivateUse1;
constexpr auto KEY = c10::DispatchKey::PrivateUse1;
const c10::Device DEVICE(TYPE, 0);

// ---- memory, which is counted

std::atomic<int64_t> live_bytes{0};
std::atomic<int64_t> peak_bytes{0};
std::atomic<int64_t> limit_bytes{INT64_MAX};

void release(void* memory) {
  live_bytes -= static_cast<int64_t>(malloc_usable_size(memory));
  std::free(memory);
}

struct CountingAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    if (size == 0) return {nullptr, nullptr, &release_nothing, DEVICE};
    TORCH_CHECK_WITH(OutOfMemoryError, live_bytes + static_cast<int64_t>(size) <= limit_bytes,
                     "pretended out of memory. Tried to allocate ", size / (1 << 20), ".00 MiB.");
    void* memory = std::aligned_alloc(64, (size + 63) / 64 * 64);
    const int64_t now = live_bytes += static_cast<int64_t>(malloc_usable_size(memory));
    int64_t before = peak_bytes;
    while (now > before && !peak_bytes.compare_exchange_weak(before, now)) {
    }
    return {memory, memory, &release, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t size) const override {
    default_copy_data(to, from, size);
  }
  static void release_nothing(void*) {}
};
CountingAllocator allocator;
REGISTER_ALLOCATOR(TYPE, &allocator);

// ---- how often the host would wait for the device: it reads a number, or copies either way

std::atomic<int64_t> waits{0};
thread_local int computing = 0;  // copies of an operation that the host computes are none of these

struct Computing {
  Computing() { ++computing; }
  ~Computing() { --computing; }
};

void count_wait() {
  if (computing == 0) ++waits;
}

// Whether the size of an operation's result depends on the numbers in its tensors.
bool has_unknown_size(const std::string& name) {
  return name == "aten::nonzero" || name == "aten::masked_select" || name == "aten::_unique2" ||
         name == "aten::bincount" || name == "aten::repeat_interleave.Tensor";
}

// ---- one device with one stream, on which everything has always been computed

struct OneDevice final : c10::impl::DeviceGuardImplInterface {
  c10::Stream only() const { return c10::Stream(c10::Stream::UNSAFE, DEVICE, 0); }
  c10::DeviceType type() const override { return TYPE; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return only(); }
  c10::Stream getDefaultStream(c10::Device) const override { return only(); }
  c10::Stream exchangeStream(c10::Stream) const override { return only(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void record(void** event, const c10::Stream&, const c10::DeviceIndex,
              const c10::EventFlag) const override {
    static int happened;
    *event = &happened;
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, OneDevice);

// ---- generators: their numbers are the CPU's, but a CPU generator is refused

struct Generator final : c10::GeneratorImpl {
  at::Generator inner = at::detail::createCPUGenerator();
  Generator() : c10::GeneratorImpl(DEVICE, c10::DispatchKeySet(KEY)) {}
  void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
  uint64_t current_seed() const override { return inner.current_seed(); }
  uint64_t seed() override { return inner.seed(); }
  void set_offset(uint64_t offset) override { inner.set_offset(offset); }
  uint64_t get_offset() const override { return inner.get_offset(); }
  void set_state(const c10::TensorImpl& state) override {
    inner.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return inner.unsafeGetGeneratorImpl()->get_state();
  }
  Generator* clone_impl() const override {
    auto* copy = new Generator();
    copy->inner = inner.clone();
    return copy;
  }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  bool isPinnedPtr(const void*) const override { return false; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::kCPU); }
  c10::Device getDeviceFromPtr(void*) const override { return DEVICE; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static at::Generator shared = at::make_generator<Generator>();
    return shared;
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::make_generator<Generator>();
  }
};

// ---- every operation: check the devices, then let the CPU compute

bool is_ours(const Tensor& x) { return x.defined() && x.device().type() == TYPE; }

// Whether a GPU takes this operation's tensors from the CPU: indices of any size.
bool takes_host_indices(const std::string& name, size_t argument) {
  return argument == 1 && name.rfind("aten::", 0) == 0 &&
         (name.find("index.") != std::string::npos || name == "aten::index" ||
          name.find("index_put") != std::string::npos || name == "aten::_unsafe_index");
}

void check_devices(const c10::OperatorHandle& op, const torch::jit::Stack& stack) {
  const auto& name = op.schema().name();
  const auto count = op.schema().arguments().size();
  const auto arguments = torch::jit::last(stack, count);
  std::string stranger;
  bool ours = false;
  auto look = [&](const Tensor& x, size_t argument) {
    ours |= is_ours(x);
    // Numbers of no dimension may come from the CPU, as on a GPU.
    if (x.defined() && !is_ours(x) && x.dim() > 0 && !takes_host_indices(name, argument))
      stranger = c10::str(x.device(), " ", x.sizes());
  };
  for (size_t i = 0; i < count; ++i) {
    const auto& value = arguments[i];
    if (value.isTensor()) look(value.toTensor(), i);
    else if (value.isTensorList()) for (const Tensor& x : value.toTensorVector()) look(x, i);
    else if (value.isOptionalTensorList())
      for (const auto& x : value.toOptionalTensorVector()) if (x) look(*x, i);
  }
  TORCH_CHECK(!ours || stranger.empty(), "Expected all tensors to be on the same device, but ",
              name, " got tensors on pretended:0 and ", stranger);
}

void compute_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  check_devices(op, *stack);
  const auto count = op.schema().arguments().size();
  for (size_t i = stack->size() - count; i < stack->size(); ++i) {
    auto& value = (*stack)[i];
    if (!value.isGenerator() || !value.toGenerator().defined()) continue;
    const auto generator = value.toGenerator();
    TORCH_CHECK(generator.device().type() == TYPE,
                "Expected a 'pretended' device type for generator but found ", generator.device());
    value = static_cast<Generator*>(generator.unsafeGetGeneratorImpl())->inner;
  }
  if (has_unknown_size(op.schema().name())) count_wait();
  const Computing now;
  at::native::cpu_fallback(op, stack, /*error_on_views=*/true);
}

Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype,
             std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>,
             std::optional<at::MemoryFormat> format) {
  return Tensor(at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(KEY),
                                          c10::dtype_or_default(dtype), format));
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride,
                     std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                     std::optional<at::Device>, std::optional<bool>) {
  return Tensor(at::detail::empty_strided_generic(size, stride, &allocator,
                                                  c10::DispatchKeySet(KEY),
                                                  c10::dtype_or_default(dtype)));
}

// The same memory as a tensor of the CPU.
Tensor as_host(const Tensor& x) {
  if (!is_ours(x)) return x;
  return at::from_blob(x.data_ptr(), x.sizes(), x.strides(),
                       at::TensorOptions().dtype(x.dtype()).device(at::kCPU));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool non_blocking) {
  if (is_ours(from) != is_ours(to) && !non_blocking) count_wait();
  as_host(to).copy_(as_host(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar read_number(const Tensor& x) {
  count_wait();
  return as_host(x).item();
}

std::optional<Tensor> to_host(const std::optional<Tensor>& x) {
  return x && x->defined() ? std::optional<Tensor>(x->cpu()) : std::nullopt;
}

Tensor to_device(const Tensor& x) { return x.defined() ? x.to(DEVICE) : x; }

void check_convolution(const Tensor& x, const Tensor& weight) {
  TORCH_CHECK(is_ours(x) && is_ours(weight) && x.dtype() == weight.dtype(),
              "Input type (", x.device(), " ", x.dtype(), ") and weight type (", weight.device(),
              " ", weight.dtype(), ") should be the same");
}

Tensor convolution(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                   c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                   c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef more,
                   c10::SymInt groups) {
  check_convolution(x, weight);
  const Computing now;
  return to_device(at::convolution_symint(x.cpu(), weight.cpu(), to_host(bias), stride, padding,
                                          dilation, transposed, more, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& x, const Tensor& weight, c10::SymIntArrayRef stride,
    c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
    c10::SymIntArrayRef more, c10::SymInt groups, std::array<bool, 3> wanted) {
  const Computing now;
  const std::vector<c10::SymInt> biases{transposed ? weight.sym_size(1) * groups
                                                   : weight.sym_size(0)};
  auto [by_x, by_weight, by_bias] = at::convolution_backward_symint(
      gradient.cpu(), x.cpu(), weight.cpu(), c10::SymIntArrayRef(biases), stride, padding,
      dilation, transposed, more, groups, wanted);
  return {to_device(by_x), to_device(by_weight), to_device(by_bias)};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&compute_on_host>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("unfold", &at::native::unfold);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("resize_", &at::native::resize_);
  m.impl("set_.source_Storage", static_cast<Tensor& (*)(Tensor&, at::Storage)>(&at::native::set_));
  m.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
  m.impl("set_.source_Tensor", &at::native::set_tensor_);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &read_number);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

// ---- autocast, by CUDA's lists

void cast_and_call(const c10::OperatorHandle& op, torch::jit::Stack* stack, at::ScalarType to) {
  c10::impl::ExcludeDispatchKeyGuard without(c10::DispatchKey::AutocastPrivateUse1);
  const auto count = op.schema().arguments().size();
  for (size_t i = stack->size() - count; i < stack->size(); ++i) {
    auto& value = (*stack)[i];
    if (value.isTensor()) value = at::autocast::cached_cast(to, value.toTensor(), TYPE);
    else if (value.isTensorList()) {
      c10::List<Tensor> cast;
      for (const Tensor& x : value.toTensorVector())
        cast.push_back(at::autocast::cached_cast(to, x, TYPE));
      value = cast;
    }
  }
  op.callBoxed(stack);
}

void call_in_half(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  cast_and_call(op, stack, at::autocast::get_autocast_dtype(TYPE));
}

void call_in_float32(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  cast_and_call(op, stack, at::kFloat);
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  for (const char* name :
       {"linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "conv1d", "conv2d",
        "conv3d", "conv_transpose2d.input", "scaled_dot_product_attention"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&call_in_half>());
  for (const char* name :
       {"layer_norm", "native_layer_norm", "rms_norm", "group_norm", "softmax.int", "log_softmax.int",
        "exp", "log", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "rsqrt", "reciprocal",
        "softplus", "cumsum", "prod", "sum", "sum.dim_IntList", "mse_loss", "cosine_similarity"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&call_in_float32>());
}

const bool hooked = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  return true;
}();

}  // namespace

extern "C" {
int64_t pretended_waits() { return waits; }
int64_t pretended_live() { return live_bytes; }
int64_t pretended_peak() { return peak_bytes; }
void pretended_reset_peak() { peak_bytes = live_bytes.load(); }
void pretended_limit(int64_t bytes) { limit_bytes = bytes; }
}
