// ONNX Runtime, through its C API.
//
// Declared here is the part of the API that is used. All of it is in version 1, whose functions keep their places in
// every later one: the table only grows at its end.

#include <cstddef>

#include "engine.h"

namespace {

struct OrtStatus;
struct OrtEnv;
struct OrtSession;
struct OrtSessionOptions;
struct OrtValue;
struct OrtMemoryInfo;
struct OrtAllocator;
struct OrtTensorInfo;
using Unused = void (*)();
constexpr int ERRORS_ONLY = 3, ARENA_ALLOCATOR = 1, DEFAULT_MEMORY = 0;

struct Api {
  Unused from_0[2];
  const char* (*GetErrorMessage)(const OrtStatus*);
  OrtStatus* (*CreateEnv)(int level, const char* name, OrtEnv**);
  Unused from_4[2];
  OrtStatus* (*DisableTelemetryEvents)(const OrtEnv*);
  OrtStatus* (*CreateSession)(const OrtEnv*, const char* path, const OrtSessionOptions*, OrtSession**);
  Unused from_8[1];
  OrtStatus* (*Run)(OrtSession*, const void* options, const char* const* input_names, const OrtValue* const* inputs,
                    size_t inputs_count, const char* const* output_names, size_t outputs_count, OrtValue** outputs);
  OrtStatus* (*CreateSessionOptions)(OrtSessionOptions**);
  Unused from_11[11];
  OrtStatus* (*SetSessionLogSeverityLevel)(OrtSessionOptions*, int);
  Unused from_23[1];
  OrtStatus* (*SetIntraOpNumThreads)(OrtSessionOptions*, int);
  OrtStatus* (*SetInterOpNumThreads)(OrtSessionOptions*, int);
  Unused from_26[5];
  OrtStatus* (*SessionGetOutputCount)(const OrtSession*, size_t*);
  Unused from_32[5];
  OrtStatus* (*SessionGetOutputName)(const OrtSession*, size_t, OrtAllocator*, char**);
  Unused from_38[11];
  OrtStatus* (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo*, void* data, size_t bytes, const int64_t* shape,
                                               size_t rank, int type, OrtValue**);
  Unused from_50[1];
  OrtStatus* (*GetTensorMutableData)(OrtValue*, void**);
  Unused from_52[8];
  OrtStatus* (*GetTensorElementType)(const OrtTensorInfo*, int*);
  OrtStatus* (*GetDimensionsCount)(const OrtTensorInfo*, size_t*);
  OrtStatus* (*GetDimensions)(const OrtTensorInfo*, int64_t*, size_t);
  Unused from_63[2];
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue*, OrtTensorInfo**);
  Unused from_66[3];
  OrtStatus* (*CreateCpuMemoryInfo)(int allocator, int memory, OrtMemoryInfo**);
  Unused from_70[6];
  OrtStatus* (*AllocatorFree)(OrtAllocator*, void*);
  Unused from_77[1];
  OrtStatus* (*GetAllocatorWithDefaultOptions)(OrtAllocator**);
  Unused from_79[14];
  void (*ReleaseStatus)(OrtStatus*);
  Unused from_94[1];
  void (*ReleaseSession)(OrtSession*);
  void (*ReleaseValue)(OrtValue*);
  Unused from_97[2];
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorInfo*);
  void (*ReleaseSessionOptions)(OrtSessionOptions*);
};
static_assert(offsetof(Api, ReleaseSessionOptions) == 100 * sizeof(Unused), "a function is not in its place");

struct ApiBase {
  const Api* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

class OnnxRuntime final : public Engine {
 public:
  explicit OnnxRuntime(const Settings& settings) : threads_(settings.threads) {
    const ApiBase* (*base)() = nullptr;
    bind(open_library(settings.library), base, "OrtGetApiBase");
    api_ = base()->GetApi(1);
    version_ = base()->GetVersionString();
    static OrtEnv* environment = nullptr;  // one in a process, as in an app
    if (!environment) {
      check(api_->CreateEnv(ERRORS_ONLY, "toolkit", &environment));
      check(api_->DisableTelemetryEvents(environment));
    }
    OrtSessionOptions* options = nullptr;
    check(api_->CreateSessionOptions(&options));
    check(api_->SetIntraOpNumThreads(options, settings.threads));
    check(api_->SetInterOpNumThreads(options, 1));
    check(api_->SetSessionLogSeverityLevel(options, ERRORS_ONLY));
    check(api_->CreateSession(environment, settings.model.c_str(), options, &session_));
    api_->ReleaseSessionOptions(options);
    check(api_->CreateCpuMemoryInfo(ARENA_ALLOCATOR, DEFAULT_MEMORY, &memory_));
    OrtAllocator* allocator = nullptr;
    check(api_->GetAllocatorWithDefaultOptions(&allocator));
    size_t count = 0;
    check(api_->SessionGetOutputCount(session_, &count));
    for (size_t number = 0; number < count; ++number) {
      char* name = nullptr;
      check(api_->SessionGetOutputName(session_, number, allocator, &name));
      names_.emplace_back(name);
      check(api_->AllocatorFree(allocator, name));
    }
    for (const std::string& name : names_) output_names_.push_back(name.c_str());
    values_.assign(count, nullptr);
  }

  ~OnnxRuntime() override {
    release();
    api_->ReleaseSession(session_);
  }

  void run(const Example& example) override {
    release();
    std::vector<const char*> names;
    std::vector<OrtValue*> inputs;
    for (const Tensor& tensor : example.tensors) {
      names.push_back(tensor.name.c_str());
      inputs.push_back(nullptr);
      check(api_->CreateTensorWithDataAsOrtValue(memory_, const_cast<char*>(tensor.bytes.data()), tensor.bytes.size(),
                                                 tensor.shape.data(), tensor.shape.size(),
                                                 type_named(tensor.type).onnx, &inputs.back()));
    }
    OrtStatus* status = api_->Run(session_, nullptr, names.data(), inputs.data(), inputs.size(), output_names_.data(),
                                  values_.size(), values_.data());
    for (OrtValue* input : inputs) api_->ReleaseValue(input);
    check(status);
  }

  std::vector<Tensor> outputs() override {
    std::vector<Tensor> found;
    for (size_t number = 0; number < values_.size(); ++number) {
      OrtTensorInfo* info = nullptr;
      check(api_->GetTensorTypeAndShape(values_[number], &info));
      int code = 0;
      size_t rank = 0;
      check(api_->GetTensorElementType(info, &code));
      check(api_->GetDimensionsCount(info, &rank));
      const Type& type = type_where(&Type::onnx, code);
      Tensor tensor{names_[number], type.name, std::vector<int64_t>(rank), {}};
      check(api_->GetDimensions(info, tensor.shape.data(), rank));
      api_->ReleaseTensorTypeAndShapeInfo(info);
      void* data = nullptr;
      check(api_->GetTensorMutableData(values_[number], &data));
      tensor.bytes.assign(static_cast<char*>(data), static_cast<char*>(data) + bytes_of(type, tensor.shape));
      found.push_back(std::move(tensor));
    }
    return found;
  }

  std::string describe() const override {
    return "{\"engine\": \"onnxruntime\", \"version\": \"" + version_ + "\", \"provider\": \"CPUExecutionProvider\"" +
           ", \"threads\": " + std::to_string(threads_) + "}";
  }

 private:
  void check(OrtStatus* status) const {
    if (!status) return;
    std::string said = api_->GetErrorMessage(status);
    api_->ReleaseStatus(status);
    throw std::runtime_error("onnxruntime " + version_ + ": " + said);
  }

  void release() {
    for (OrtValue*& value : values_) {
      if (value) api_->ReleaseValue(value);
      value = nullptr;
    }
  }

  const Api* api_ = nullptr;
  int threads_;
  std::string version_;
  OrtSession* session_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
  std::vector<std::string> names_;
  std::vector<const char*> output_names_;
  std::vector<OrtValue*> values_;
};

}  // namespace

std::unique_ptr<Engine> load_onnxruntime(const Settings& settings) { return std::make_unique<OnnxRuntime>(settings); }
