// ONNX Runtime, by the table of functions that its library gives out.
// Source: onnxruntime_c_api.h; the numbers are positions in struct OrtApi, as in the native agent.

#include "app.hpp"

namespace {

using Status = void *;
const void *const *table;

template <typename... Arguments> void call(int position, Arguments... arguments) {
    auto function = reinterpret_cast<Status (*)(Arguments...)>(const_cast<void *>(table[position]));
    if (Status status = function(arguments...)) {
        auto message = reinterpret_cast<const char *(*)(Status)>(const_cast<void *>(table[2]));
        throw edgeloop::BundleError(message(status));
    }
}

enum { CREATE_ENV = 3, CREATE_SESSION_FROM_ARRAY = 8, RUN = 9, CREATE_OPTIONS = 10 };
enum { SET_THREADS = 24, INPUT_NAME = 36, OUTPUT_NAME = 37, CREATE_TENSOR = 49 };
enum { CREATE_MEMORY_INFO = 69, DEFAULT_ALLOCATOR = 78 };
constexpr int FLOAT = 1;

void *tensor(void *memory, std::vector<float> &values, const std::vector<std::int64_t> &shape) {
    void *made;
    call(CREATE_TENSOR, memory, static_cast<void *>(values.data()), values.size() * sizeof(float),
         shape.data(), shape.size(), FLOAT, &made);
    return made;
}

} // namespace

Model onnx_model(const std::string &library, const edgeloop::Choice &choice) {
    struct Base {
        const void *const *(*table)(std::uint32_t);
    };
    auto base = reinterpret_cast<const Base *(*)()>(dlsym(opened(library), "OrtGetApiBase"));
    table = base()->table(12);
    void *env, *options, *session, *allocator, *memory;
    char *input, *output;
    call(CREATE_ENV, 3, "app", &env);
    call(CREATE_OPTIONS, &options);
    if (choice.threads) call(SET_THREADS, options, choice.threads);
    call(CREATE_SESSION_FROM_ARRAY, env, static_cast<const void *>(choice.content.data),
         choice.content.size, options, &session);
    call(DEFAULT_ALLOCATOR, &allocator);
    call(CREATE_MEMORY_INFO, 0, 0, &memory);
    call(INPUT_NAME, session, std::size_t{0}, allocator, &input);
    call(OUTPUT_NAME, session, std::size_t{0}, allocator, &output);
    auto in = shape_of(choice.artifact["inputs"][0]), out = shape_of(choice.artifact["outputs"][0]);
    return [=](std::vector<float> &values, std::size_t outputs) {
        std::vector<float> result(outputs);
        const void *given = tensor(memory, values, in);
        void *made = tensor(memory, result, out);
        const char *names[] = {input, output};
        call(RUN, session, static_cast<void *>(nullptr), &names[0], &given, std::size_t{1},
             &names[1], std::size_t{1}, &made);
        return result;
    };
}
