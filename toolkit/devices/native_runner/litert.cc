// LiteRT, through the C API of its CompiledModel, with the CPU kernels that it takes by default (XNNPACK).
//
// Declared here is the part of the API that is used, as libLiteRt.so has it since version 2.1.6.

#include <cstddef>
#include <map>

#include "engine.h"

namespace {

using Handle = void*;
constexpr int CPU = 1, READ = 0, WRITE = 1;
constexpr int TAG_ACCELERATORS = 24, TAG_LOG = 25, INTEGER = 2, ERRORS_ONLY = 3;

struct Option {
  int tag;
  struct {
    int type;
    int64_t value;
  } any;
};
static_assert(sizeof(Option) == 24 && offsetof(Option, any) == 8, "not what LiteRT takes");

struct RankedType {
  int type;
  uint32_t rank_and_strided;  // the rank is in the lowest seven bits
  int32_t sizes[8];
  uint32_t strides[8];
};
static_assert(sizeof(RankedType) == 72, "not what LiteRT gives");

struct Api {
  int (*CreateEnvironment)(int count, const Option*, Handle*);
  int (*CreateModelFromFile)(Handle environment, const char* path, Handle*);
  int (*CreateOptions)(Handle*);
  int (*SetOptionsHardwareAccelerators)(Handle options, int);
  int (*CreateOpaqueOptions)(const char* name, void* content, void (*free)(void*), Handle*);
  int (*AddOpaqueOptions)(Handle options, Handle opaque);
  int (*CreateCompiledModel)(Handle environment, Handle model, Handle options, Handle*);
  int (*GetNumModelSignatures)(Handle model, size_t*);
  int (*GetModelSignature)(Handle model, size_t, Handle*);
  int (*GetSignatureKey)(Handle signature, const char**);
  int (*GetNumSignatureInputs)(Handle signature, size_t*);
  int (*GetNumSignatureOutputs)(Handle signature, size_t*);
  int (*GetSignatureInputName)(Handle signature, size_t, const char**);
  int (*GetSignatureOutputName)(Handle signature, size_t, const char**);
  int (*GetSignatureInputTensorByIndex)(Handle signature, size_t, Handle*);
  int (*GetSignatureOutputTensorByIndex)(Handle signature, size_t, Handle*);
  int (*GetRankedTensorType)(Handle tensor, RankedType*);
  int (*GetCompiledModelInputBufferRequirements)(Handle compiled, size_t signature, size_t, Handle*);
  int (*GetCompiledModelOutputBufferRequirements)(Handle compiled, size_t signature, size_t, Handle*);
  int (*CreateManagedTensorBufferFromRequirements)(Handle environment, const RankedType*, Handle needs, Handle*);
  int (*GetTensorBufferPackedSize)(Handle buffer, size_t*);
  int (*LockTensorBuffer)(Handle buffer, void**, int mode);
  int (*UnlockTensorBuffer)(Handle buffer);
  int (*RunCompiledModel)(Handle compiled, size_t signature, size_t, Handle* inputs, size_t, Handle* outputs);
  void (*DestroyTensorBuffer)(Handle);
  void (*DestroyCompiledModel)(Handle);
  void (*DestroyOptions)(Handle);
  void (*DestroyModel)(Handle);
};

struct Side {  // the inputs or the outputs of a signature
  std::vector<Tensor> tensors;
  std::vector<Handle> buffers;
};

struct Signature {
  size_t number = 0;
  Side inputs, outputs;
};

class LiteRt final : public Engine {
 public:
  explicit LiteRt(const Settings& settings) : threads_(settings.threads) {
    bind_all(open_library(settings.library));
    static Handle environment = nullptr;  // one in a process, as in an app
    if (!environment) {
      const Option options[] = {{TAG_ACCELERATORS, {INTEGER, CPU}}, {TAG_LOG, {INTEGER, ERRORS_ONLY}}};
      check(api_.CreateEnvironment(2, options, &environment), "it does not start");
    }
    environment_ = environment;
    check(api_.CreateModelFromFile(environment_, settings.model.c_str(), &model_), "it cannot read " + settings.model);
    check(api_.CreateOptions(&options_), "it takes no options");
    check(api_.SetOptionsHardwareAccelerators(options_, CPU), "it has no CPU kernels");
    cpu_ = "num_threads = " + std::to_string(settings.threads) + "\n";
    Handle opaque = nullptr;
    check(api_.CreateOpaqueOptions("xnnpack", cpu_.data(), [](void*) {}, &opaque), "it takes no options of XNNPACK");
    check(api_.AddOpaqueOptions(options_, opaque), "it takes no options of XNNPACK");
    check(api_.CreateCompiledModel(environment_, model_, options_, &compiled_), "it cannot run " + settings.model);
    size_t count = 0;
    check(api_.GetNumModelSignatures(model_, &count), "it tells no signatures");
    for (size_t number = 0; number < count; ++number) {
      Handle signature = nullptr;
      const char* key = nullptr;
      check(api_.GetModelSignature(model_, number, &signature), "it tells no signature");
      check(api_.GetSignatureKey(signature, &key), "it tells no signature's name");
      numbers_[key] = number;
    }
  }

  ~LiteRt() override {
    for (auto& entry : ready_)
      for (Side* side : {&entry.second.inputs, &entry.second.outputs})
        for (Handle buffer : side->buffers) api_.DestroyTensorBuffer(buffer);
    api_.DestroyCompiledModel(compiled_);
    api_.DestroyOptions(options_);
    api_.DestroyModel(model_);
  }

  void run(const Example& example) override {
    Signature& signature = ready(example.signature);
    Side& inputs = signature.inputs;
    for (const Tensor& given : example.tensors) {
      size_t place = 0;
      while (place < inputs.tensors.size() && inputs.tensors[place].name != given.name) ++place;
      if (place == inputs.tensors.size()) throw std::runtime_error("the file has no input " + given.name);
      const Tensor& taken = inputs.tensors[place];
      if (taken.type != given.type || taken.shape != given.shape)
        throw std::runtime_error("input " + given.name + " is of another type or shape than in the file");
      void* memory = nullptr;
      check(api_.LockTensorBuffer(inputs.buffers[place], &memory, WRITE), "an input cannot be written");
      std::memcpy(memory, given.bytes.data(), given.bytes.size());
      check(api_.UnlockTensorBuffer(inputs.buffers[place]), "an input cannot be written");
    }
    Side& outputs = signature.outputs;
    check(api_.RunCompiledModel(compiled_, signature.number, inputs.buffers.size(), inputs.buffers.data(),
                                outputs.buffers.size(), outputs.buffers.data()),
          "the inference failed");
    for (size_t place = 0; place < outputs.buffers.size(); ++place) {  // asynchronous kernels are waited for here
      void* memory = nullptr;
      check(api_.LockTensorBuffer(outputs.buffers[place], &memory, READ), "an output cannot be read");
      std::memcpy(outputs.tensors[place].bytes.data(), memory, outputs.tensors[place].bytes.size());
      check(api_.UnlockTensorBuffer(outputs.buffers[place]), "an output cannot be read");
    }
    last_ = &signature;
  }

  std::vector<Tensor> outputs() override { return last_ ? last_->outputs.tensors : std::vector<Tensor>{}; }

  std::string describe() const override {
    return "{\"engine\": \"litert\", \"api\": \"CompiledModel\", \"threads\": " + std::to_string(threads_) + "}";
  }

 private:
  Signature& ready(const std::string& key) {
    auto found = ready_.find(key);
    if (found != ready_.end()) return found->second;
    auto number = numbers_.find(key);
    if (number == numbers_.end()) throw std::runtime_error("the file has no signature '" + key + "'");
    Handle handle = nullptr;
    check(api_.GetModelSignature(model_, number->second, &handle), "it tells no signature");
    Signature& made = ready_[key];
    made.number = number->second;
    fill(made.inputs, handle, made.number, api_.GetNumSignatureInputs, api_.GetSignatureInputName,
         api_.GetSignatureInputTensorByIndex, api_.GetCompiledModelInputBufferRequirements);
    fill(made.outputs, handle, made.number, api_.GetNumSignatureOutputs, api_.GetSignatureOutputName,
         api_.GetSignatureOutputTensorByIndex, api_.GetCompiledModelOutputBufferRequirements);
    return made;
  }

  void fill(Side& side, Handle signature, size_t number, int (*get_count)(Handle, size_t*),
            int (*get_name)(Handle, size_t, const char**), int (*get_tensor)(Handle, size_t, Handle*),
            int (*get_needs)(Handle, size_t, size_t, Handle*)) {
    size_t count = 0;
    check(get_count(signature, &count), "it tells no tensors");
    for (size_t place = 0; place < count; ++place) {
      const char* name = nullptr;
      Handle tensor = nullptr, needs = nullptr, buffer = nullptr;
      RankedType ranked{};
      check(get_name(signature, place, &name), "it tells no tensor's name");
      check(get_tensor(signature, place, &tensor), "it tells no tensor");
      check(api_.GetRankedTensorType(tensor, &ranked), "it tells no tensor's shape");
      check(get_needs(compiled_, number, place, &needs), "it tells no tensor's memory");
      check(api_.CreateManagedTensorBufferFromRequirements(environment_, &ranked, needs, &buffer), "no memory");
      const Type& type = type_where(&Type::litert, ranked.type);
      Tensor made{name, type.name, {ranked.sizes, ranked.sizes + (ranked.rank_and_strided & 127)}, {}};
      made.bytes.resize(bytes_of(type, made.shape));
      size_t bytes = 0;
      check(api_.GetTensorBufferPackedSize(buffer, &bytes), "it tells no tensor's size");
      if (bytes != made.bytes.size()) throw std::runtime_error("tensor " + made.name + " has another size than told");
      side.tensors.push_back(std::move(made));
      side.buffers.push_back(buffer);
    }
  }

  static void check(int status, const std::string& what) {
    if (status) throw std::runtime_error("litert: " + what + " (status " + std::to_string(status) + ")");
  }

  void bind_all(void* library) {
    Handle newer = nullptr;
    bind(library, newer, "LiteRtCreateModelFromFd");  // since 2.1.6, as are the arguments of LiteRtCreateModelFromFile
#define BIND(name) bind(library, api_.name, "LiteRt" #name)
    BIND(CreateEnvironment), BIND(CreateModelFromFile), BIND(CreateOptions), BIND(SetOptionsHardwareAccelerators);
    BIND(CreateOpaqueOptions), BIND(AddOpaqueOptions), BIND(CreateCompiledModel), BIND(GetNumModelSignatures);
    BIND(GetModelSignature), BIND(GetSignatureKey), BIND(GetNumSignatureInputs), BIND(GetNumSignatureOutputs);
    BIND(GetSignatureInputName), BIND(GetSignatureOutputName), BIND(GetSignatureInputTensorByIndex);
    BIND(GetSignatureOutputTensorByIndex), BIND(GetRankedTensorType), BIND(GetCompiledModelInputBufferRequirements);
    BIND(GetCompiledModelOutputBufferRequirements), BIND(CreateManagedTensorBufferFromRequirements);
    BIND(GetTensorBufferPackedSize), BIND(LockTensorBuffer), BIND(UnlockTensorBuffer), BIND(RunCompiledModel);
    BIND(DestroyTensorBuffer), BIND(DestroyCompiledModel), BIND(DestroyOptions), BIND(DestroyModel);
#undef BIND
  }

  Api api_{};
  int threads_;
  std::string cpu_;
  Handle environment_ = nullptr, model_ = nullptr, options_ = nullptr, compiled_ = nullptr;
  std::map<std::string, size_t> numbers_;
  std::map<std::string, Signature> ready_;
  Signature* last_ = nullptr;
};

}  // namespace

std::unique_ptr<Engine> load_litert(const Settings& settings) { return std::make_unique<LiteRt>(settings); }
