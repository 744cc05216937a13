// A pretended accelerator: its tensors lie in the memory of the CPU, but PyTorch takes them for those of another device.
// Every operation runs on the CPU; an operation that mixes devices, or draws with the generator of another device, is
// refused as CUDA refuses it. So a machine without a GPU finds the errors of a program that forgets where its data live.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <set>

namespace {

using at::IValue;
using at::Tensor;
constexpr auto KIND = c10::DeviceType::PrivateUse1;
const c10::Device HERE(KIND, 0);

// ---- memory

void release(void* p) { std::free(p); }

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    void* p = n ? std::malloc(n) : nullptr;
    return {p, p, &release, HERE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t n) const override { default_copy_data(to, from, n); }
};
Memory memory;
REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &memory)

// ---- the device itself: one, with one stream that is always done

struct Guard final : c10::impl::NoOpDeviceGuardImpl<KIND> {
  c10::Device exchangeDevice(c10::Device) const override { return HERE; }
  c10::Device getDevice() const override { return HERE; }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, HERE); }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

// ---- random numbers: the CPU's, under another device's name

struct Dice final : c10::GeneratorImpl {
  explicit Dice(at::Generator cpu)
      : GeneratorImpl(HERE, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)), inner(std::move(cpu)) {}
  void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { inner.set_offset(offset); }
  uint64_t get_offset() const override { return 0; }
  uint64_t current_seed() const override { return inner.current_seed(); }
  uint64_t seed() override { return const_cast<at::Generator&>(inner).seed(); }
  void set_state(const c10::TensorImpl& state) override { inner.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return inner.unsafeGetGeneratorImpl()->get_state(); }
  Dice* clone_impl() const override { return new Dice(inner.clone()); }
  at::Generator inner;
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::Device getDeviceFromPtr(void*) const override { return HERE; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::make_generator<Dice>(at::make_generator<at::CPUGeneratorImpl>());
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static at::Generator only = at::make_generator<Dice>(at::detail::getDefaultCPUGenerator());
    return only;
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t n) const override {
    auto fresh = memory.allocate(n);
    if (n && storage.nbytes()) std::memcpy(fresh.get(), storage.data(), std::min(n, storage.nbytes()));
    storage.unsafeGetStorageImpl()->set_data_ptr(std::move(fresh));
    storage.unsafeGetStorageImpl()->set_nbytes(n);
  }
};

// ---- tensors of the device, seen as tensors of the CPU and back

bool here(const Tensor& t) { return t.defined() && t.device().type() == KIND; }

Tensor on_cpu(const Tensor& t) {  // the same memory
  auto options = t.options().device(c10::kCPU).pinned_memory(c10::nullopt);
  Tensor seen = t.numel() == 0 ? at::empty_strided(t.sizes(), t.strides(), options)
                               : at::from_blob(t.data_ptr(), t.sizes(), t.strides(), options);
  seen.unsafeGetTensorImpl()->_set_conj(t.is_conj());
  seen.unsafeGetTensorImpl()->_set_neg(t.is_neg());
  return seen;
}

Tensor to_here(const Tensor& t) {  // a copy
  if (!t.defined() || here(t)) return t;
  Tensor made = at::empty_strided(t.sizes(), t.strides(), t.options().device(HERE));
  if (t.numel()) on_cpu(made).copy_(t);
  return made;
}

// ---- every operation

const std::set<std::string> MAY_INDEX_FROM_CPU = {"aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_",
                                                 "aten::index.Tensor_out", "aten::index_put"};

void refuse(const c10::OperatorHandle& op, const Tensor& t) {
  TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, ", HERE, " and ",
              t.device(), "! (", toString(op.operator_name()), ", shape ", t.sizes(), ")");
}

struct Written { Tensor real, seen; };

Tensor argument(const c10::OperatorHandle& op, const Tensor& t, bool writes, bool index, std::vector<Written>& written) {
  if (!t.defined()) return t;
  if (!here(t)) {
    if (t.device().is_cpu() && !writes && (t.dim() == 0 || index)) return t;
    refuse(op, t);
  }
  Tensor seen = on_cpu(t);
  if (writes) {
    if (t.numel() == 0) seen = at::empty(t.sizes(), seen.options());
    written.push_back({t, seen});
  }
  return seen;
}

void run(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto n = schema.arguments().size();
  auto arguments = torch::jit::last(*stack, n);
  const bool index = MAY_INDEX_FROM_CPU.count(toString(op.operator_name()));
  std::vector<Written> written;
  std::vector<IValue> seen;
  std::vector<at::Generator> borrowed;
  for (size_t i = 0; i < n; ++i) {
    const IValue& value = arguments[i];
    const auto* alias = schema.arguments()[i].alias_info();
    const bool writes = alias && alias->isWrite();
    if (value.isTensor()) {
      seen.emplace_back(argument(op, value.toTensor(), writes, false, written));
    } else if (value.isTensorList()) {
      std::vector<Tensor> list;
      for (const Tensor& t : value.toTensorVector()) list.push_back(argument(op, t, writes, false, written));
      seen.emplace_back(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& t : value.toOptionalTensorVector())
        list.push_back(t ? std::optional<Tensor>(argument(op, *t, false, index, written)) : std::nullopt);
      seen.emplace_back(list);
    } else if (value.isGenerator()) {
      at::Generator g = value.toGenerator();
      if (g.defined()) {
        TORCH_CHECK(g.device().type() == KIND, "Expected a '", HERE.str(), "' device type for generator but found '",
                    g.device(), "'");
        g = static_cast<Dice*>(g.unsafeGetGeneratorImpl())->inner;
      }
      seen.emplace_back(g);
    } else if (value.isDevice()) {
      seen.emplace_back(c10::Device(c10::kCPU));
    } else {
      seen.emplace_back(value);
    }
  }
  torch::jit::Stack work(seen.begin(), seen.end());
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &work);
  for (auto& [real, changed] : written) {
    if (real.sizes() == changed.sizes() && real.numel() && real.data_ptr() == changed.data_ptr()) continue;
    if (real.sizes() != changed.sizes()) real.resize_(changed.sizes());
    if (real.numel()) on_cpu(real).copy_(changed);
  }
  std::vector<IValue> results;
  for (size_t i = 0; i < schema.returns().size(); ++i) {
    const IValue& value = work[i];
    const auto* alias = schema.returns()[i].alias_info();
    if (alias && alias->isWrite()) {  // the argument itself
      for (size_t k = 0; k < n; ++k) {
        const auto* of = schema.arguments()[k].alias_info();
        if (of && *of == *alias) {
          results.push_back(arguments[k]);
          break;
        }
      }
      continue;
    }
    TORCH_CHECK(!alias, "the pretended device has no view ", toString(op.operator_name()));
    if (value.isTensor()) {
      results.emplace_back(to_here(value.toTensor()));
    } else if (value.isTensorList()) {
      std::vector<Tensor> list;
      for (const Tensor& t : value.toTensorVector()) list.push_back(to_here(t));
      results.emplace_back(list);
    } else {
      results.push_back(value);
    }
  }
  torch::jit::drop(*stack, n);
  for (auto& value : results) stack->push_back(std::move(value));
}

// ---- the few operations that need the device's own memory

Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory,
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &memory,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

Tensor either(const Tensor& t) { return here(t) ? on_cpu(t) : t; }

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  if (to.numel()) either(to).copy_(either(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

const Tensor& resize_(const Tensor& t, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  return at::native::resize_(t, C10_AS_INTARRAYREF_SLOW(size), format);
}

Tensor as_strided(const Tensor& t, c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<c10::SymInt> offset) {
  std::optional<int64_t> first = offset ? std::optional<int64_t>(offset->expect_int()) : std::nullopt;
  return at::native::as_strided_tensorimpl(t, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), first);
}

Tensor view(const Tensor& t, c10::SymIntArrayRef size) { return at::native::view(t, C10_AS_INTARRAYREF_SLOW(size)); }

Tensor reshape_alias(const Tensor& t, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::_reshape_alias(t, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

Tensor& set_storage(Tensor& t, at::Storage source, c10::SymInt offset, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::set_storage_cpu_(t, std::move(source), offset.expect_int(), C10_AS_INTARRAYREF_SLOW(size),
                                      C10_AS_INTARRAYREF_SLOW(stride));
}

at::Scalar number(const Tensor& t) { return on_cpu(t).item(); }

Tensor convolution(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b, c10::SymIntArrayRef stride,
                   c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
                   c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  for (const Tensor& t : {x, w})
    TORCH_CHECK(here(t), "Input type and weight type should be the same: one is on ", t.device(), ", not on ", HERE);
  std::optional<Tensor> bias = b && b->defined() ? std::optional<Tensor>(on_cpu(*b)) : std::nullopt;
  return to_here(at::convolution_symint(on_cpu(x), on_cpu(w), bias, stride, padding, dilation, transposed, output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& g, const Tensor& x, const Tensor& w, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
    c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups,
    std::array<bool, 3> mask) {
  c10::SymInt channels = w.sym_size(transposed ? 1 : 0) * (transposed ? groups : c10::SymInt(1));
  std::vector<c10::SymInt> bias{channels};
  auto [gx, gw, gb] = at::convolution_backward_symint(on_cpu(g), on_cpu(x), on_cpu(w), c10::SymIntArrayRef(bias), stride,
                                                      padding, dilation, transposed, output_padding, groups, mask);
  return {to_here(gx), to_here(gw), to_here(gb)};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("resize_", &resize_);
  m.impl("as_strided", &as_strided);
  m.impl("view", &view);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("view_as_real", &at::native::view_as_real);
  m.impl("view_as_complex", &at::native::view_as_complex);
  m.impl("set_.source_Tensor", &at::native::set_tensor_);
  m.impl("set_.source_Storage", &at::native::set_);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("_local_scalar_dense", &number);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

}  // namespace

extern "C" void pretend() {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
}
