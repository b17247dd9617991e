// CUDA C++ on the CPU, for tests: what a kernel's source needs to compile with g++.
//
//   peaks.cu --(this header)--> g++ --+--> peaks.so --(ctypes)--> emulator.py: launches on NumPy
//   emulator.cpp: the scheduler ------+
//
// A launch runs its blocks one after another; the CUDA threads of a block are fibers that give way
// only at barriers, shuffles and votes, in an order that the seed of the launch decides. Warps
// have 32 lanes and are not in lockstep: what holds here holds under any legal interleaving of
// whole stretches between barriers. Races inside such a stretch are found by ThreadSanitizer.
//
// Absent on purpose: functions that are approximate on a GPU (__expf, __fdividef, rsqrtf, ...),
// those that sm_75 lacks (__reduce_add_sync, ...), __activemask, cooperative groups, textures.
// Not as on a GPU: `(int)x` of a NaN or of a float beyond int; use __float2int_rn and its kin.
#pragma once
#include <string.h>

#include <cmath>
#include <type_traits>
#include <utility>

// ---- the language -----------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __restrict__ __restrict
// Blocks run one after another, so one copy of a shared variable will do. emulator.py writes the
// kernel's name to each `__shared__`: a section for every kernel lets a launch measure it and fill it
// with 0xFF (NaN, -1) before each block. AddressSanitizer guards variables of usual sections only.
#ifdef __SANITIZE_ADDRESS__
#define CUEMU_SHARED(kernel) static
#else
#define CUEMU_SHARED(kernel) static __attribute__((section("cuemu_shared_" #kernel)))
#endif

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct uchar2 { unsigned char x, y; };
struct uchar3 { unsigned char x, y, z; };
struct alignas(4) uchar4 { unsigned char x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct float3 { float x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
inline uchar2 make_uchar2(unsigned char x, unsigned char y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

// ---- the scheduler, as kernels see it -----------------------------------------------------------

namespace cuemu {

struct Site {  // where a barrier, shuffle or vote stands in the source
    const char* file;
    int line;
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

struct Indices { uint3 thread, block; dim3 block_dim, grid_dim; };
extern const Indices* current;  // of the running thread
extern void* dynamic_shared;    // of the running block

enum class Vote { none, count, any, all };
int sync_block(Vote vote, bool predicate, Site site);  // all threads of the block meet
// All lanes of the mask meet; returns what each of the 32 lanes brought. `ordered`: memory written
// before is seen after, which CUDA promises for __syncwarp only.
const unsigned long long* exchange(unsigned mask, unsigned long long value, bool ordered, Site site);
void require_lane(unsigned mask, unsigned source, Site site);  // a shuffle reads only lanes of its mask
unsigned lane();

template <class T> unsigned long long packed(T value) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "shuffles move up to 8 bytes");
    unsigned long long bits = 0;
    memcpy(&bits, &value, sizeof value);
    return bits;
}
template <class T> T shuffled(unsigned mask, T value, unsigned source, Site site) {
    require_lane(mask, source, site);
    unsigned long long bits = exchange(mask, packed(value), false, site)[source];
    T result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

}  // namespace cuemu

#define threadIdx (cuemu::current->thread)
#define blockIdx (cuemu::current->block)
#define blockDim (cuemu::current->block_dim)
#define gridDim (cuemu::current->grid_dim)
constexpr int warpSize = 32;

// ---- barriers, shuffles, votes --------------------------------------------------------------------

inline void __syncthreads(cuemu::Site site = cuemu::Site::here()) {
    cuemu::sync_block(cuemu::Vote::none, false, site);
}
inline int __syncthreads_count(int predicate, cuemu::Site site = cuemu::Site::here()) {
    return cuemu::sync_block(cuemu::Vote::count, predicate, site);
}
inline int __syncthreads_or(int predicate, cuemu::Site site = cuemu::Site::here()) {
    return cuemu::sync_block(cuemu::Vote::any, predicate, site);
}
inline int __syncthreads_and(int predicate, cuemu::Site site = cuemu::Site::here()) {
    return cuemu::sync_block(cuemu::Vote::all, predicate, site);
}
inline void __syncwarp(unsigned mask = ~0u, cuemu::Site site = cuemu::Site::here()) {
    cuemu::exchange(mask, 0, true, site);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, cuemu::Site site = cuemu::Site::here()) {
    unsigned group = cuemu::lane() & ~(width - 1);
    return cuemu::shuffled(mask, value, group | (source & (width - 1)), site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, cuemu::Site site = cuemu::Site::here()) {
    unsigned lane = cuemu::lane(), source = lane ^ bits;
    bool beyond = (source | (width - 1)) > (lane | (width - 1));  // a later group: keeps its own
    return cuemu::shuffled(mask, value, beyond ? lane : source, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, cuemu::Site site = cuemu::Site::here()) {
    unsigned lane = cuemu::lane(), within = (lane & (width - 1)) + delta;
    return cuemu::shuffled(mask, value, within < (unsigned)width ? lane + delta : lane, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, cuemu::Site site = cuemu::Site::here()) {
    unsigned lane = cuemu::lane();
    return cuemu::shuffled(mask, value, (lane & (width - 1)) >= delta ? lane - delta : lane, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, cuemu::Site site = cuemu::Site::here()) {
    const unsigned long long* all = cuemu::exchange(mask, predicate != 0, false, site);
    unsigned votes = 0;
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1 && all[lane] == 1) votes |= 1u << lane;
    return votes;
}
inline int __any_sync(unsigned mask, int predicate, cuemu::Site site = cuemu::Site::here()) {
    return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, cuemu::Site site = cuemu::Site::here()) {
    return __ballot_sync(mask, !predicate, site) == 0;
}

inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- atomics: relaxed, as on a GPU; they order nothing else ----------------------------------------

namespace cuemu {
template <class T, class F> T update(T* place, F next) {
    T old, wanted;
    __atomic_load(place, &old, __ATOMIC_RELAXED);
    do wanted = next(old);
    while (!__atomic_compare_exchange(place, &old, &wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
template <class T> using Same = std::type_identity_t<T>;  // only the pointer decides the type
}  // namespace cuemu

template <class T> T atomicAdd(T* p, cuemu::Same<T> v) {
    return cuemu::update(p, [=](T old) { return old + v; });
}
template <class T> T atomicSub(T* p, cuemu::Same<T> v) {
    return cuemu::update(p, [=](T old) { return old - v; });
}
template <class T> T atomicMax(T* p, cuemu::Same<T> v) {
    static_assert(std::is_integral_v<T>, "CUDA has atomicMax for integers only");
    return cuemu::update(p, [=](T old) { return old < v ? v : old; });
}
template <class T> T atomicMin(T* p, cuemu::Same<T> v) {
    static_assert(std::is_integral_v<T>, "CUDA has atomicMin for integers only");
    return cuemu::update(p, [=](T old) { return v < old ? v : old; });
}
template <class T> T atomicOr(T* p, cuemu::Same<T> v) {
    return cuemu::update(p, [=](T old) { return old | v; });
}
template <class T> T atomicAnd(T* p, cuemu::Same<T> v) {
    return cuemu::update(p, [=](T old) { return old & v; });
}
template <class T> T atomicExch(T* p, cuemu::Same<T> v) {
    return cuemu::update(p, [=](T) { return v; });
}
template <class T> T atomicCAS(T* p, cuemu::Same<T> expected, cuemu::Same<T> v) {
    return cuemu::update(p, [=](T old) { return old == expected ? v : old; });
}

// ---- numbers ----------------------------------------------------------------------------------------

using std::isfinite, std::isinf, std::isnan;

template <class A, class B> auto min(A a, B b) {  // of floats: a NaN gives way, as on a GPU
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return std::fmin((T)a, (T)b);
    else return (T)b < (T)a ? (T)b : (T)a;
}
template <class A, class B> auto max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return std::fmax((T)a, (T)b);
    else return (T)a < (T)b ? (T)b : (T)a;
}

namespace cuemu {
template <class To, class From> To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
template <class Int, class Real> Int saturated(Real rounded) {  // a GPU clamps; NaN becomes 0
    constexpr Int low = std::is_signed_v<Int> ? (Int)(1u << 31) : 0;
    constexpr Int high = (Int)~low;
    if (rounded != rounded) return 0;
    if (rounded <= (Real)low) return low;
    return rounded >= (Real)high ? high : (Int)rounded;
}
}  // namespace cuemu

inline int __float2int_rn(float x) { return cuemu::saturated<int>(nearbyintf(x)); }
inline int __float2int_rd(float x) { return cuemu::saturated<int>(floorf(x)); }
inline int __float2int_ru(float x) { return cuemu::saturated<int>(ceilf(x)); }
inline int __float2int_rz(float x) { return cuemu::saturated<int>(truncf(x)); }
inline unsigned __float2uint_rn(float x) { return cuemu::saturated<unsigned>(nearbyintf(x)); }
inline unsigned __float2uint_rz(float x) { return cuemu::saturated<unsigned>(truncf(x)); }
inline int __double2int_rn(double x) { return cuemu::saturated<int>(nearbyint(x)); }
inline int __double2int_rd(double x) { return cuemu::saturated<int>(floor(x)); }
inline int __double2int_rz(double x) { return cuemu::saturated<int>(trunc(x)); }
inline float __double2float_rn(double x) { return (float)x; }
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(unsigned x) { return (float)x; }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __saturatef(float x) { return x != x ? 0.f : std::fmin(1.f, std::fmax(0.f, x)); }

inline unsigned __float_as_uint(float x) { return cuemu::bits_as<unsigned>(x); }
inline int __float_as_int(float x) { return cuemu::bits_as<int>(x); }
inline float __uint_as_float(unsigned x) { return cuemu::bits_as<float>(x); }
inline float __int_as_float(int x) { return cuemu::bits_as<float>(x); }
inline long long __double_as_longlong(double x) { return cuemu::bits_as<long long>(x); }
inline double __longlong_as_double(long long x) { return cuemu::bits_as<double>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
template <class T> T __ldg(const T* p) { return *p; }

// ---- half, as cuda_fp16.h has it; loads and stores, no arithmetic ---------------------------------------

struct __half {
    _Float16 value;
    __half() = default;
    __half(float x) : value((_Float16)x) {}
    operator float() const { return (float)value; }
};
struct alignas(4) __half2 { __half x, y; };
typedef __half half;
typedef __half2 half2;
inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline __half __double2half(double x) { __half h; h.value = (_Float16)x; return h; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline float __low2float(__half2 x) { return x.x; }
inline float __high2float(__half2 x) { return x.y; }
inline unsigned short __half_as_ushort(__half x) { return cuemu::bits_as<unsigned short>(x.value); }
inline __half __ushort_as_half(unsigned short x) { __half h; h.value = cuemu::bits_as<_Float16>(x); return h; }

// ---- launches, as emulator.py sees them -------------------------------------------------------------------

namespace cuemu {

struct Kernel {
    void (*body)(void** args);  // unpacks the arguments and runs one CUDA thread
    int max_threads;            // __launch_bounds__
    char *shared_begin, *shared_end;
};
struct Launch {
    unsigned grid[3], block[3];
    unsigned long long dynamic_bytes, seed;
};
const char* run(const Kernel& kernel, const Launch& launch, void** args);  // nullptr, or what went wrong

// A parameter in NumPy's words: "f4", "u1", ...; "*f4" a pointer to it, "*const f4", and "*f4 x2" to
// a float2; "void" takes any array.
template <class T> constexpr const char* type_name() {
    using U = std::remove_cv_t<T>;
    if constexpr (std::is_void_v<U>) return "void";
    else if constexpr (std::is_same_v<U, bool>) return "b1";
    else if constexpr (std::is_same_v<U, __half>) return "f2";
    else if constexpr (std::is_same_v<U, float>) return "f4";
    else if constexpr (std::is_same_v<U, double>) return "f8";
    else if constexpr (std::is_same_v<U, __half2>) return "f2 x2";
    else if constexpr (std::is_same_v<U, float2>) return "f4 x2";
    else if constexpr (std::is_same_v<U, float4>) return "f4 x4";
    else if constexpr (std::is_same_v<U, double2>) return "f8 x2";
    else if constexpr (std::is_same_v<U, uchar2>) return "u1 x2";
    else if constexpr (std::is_same_v<U, uchar4>) return "u1 x4";
    else if constexpr (std::is_same_v<U, int2>) return "i4 x2";
    else if constexpr (std::is_same_v<U, int4>) return "i4 x4";
    else if constexpr (std::is_same_v<U, uint2>) return "u4 x2";
    else if constexpr (std::is_same_v<U, uint4>) return "u4 x4";
    else if constexpr (std::is_integral_v<U> && std::is_signed_v<U>)
        return sizeof(U) == 1 ? "i1" : sizeof(U) == 2 ? "i2" : sizeof(U) == 4 ? "i4" : "i8";
    else if constexpr (std::is_integral_v<U>)
        return sizeof(U) == 1 ? "u1" : sizeof(U) == 2 ? "u2" : sizeof(U) == 4 ? "u4" : "u8";
    else static_assert(!sizeof(U), "a kernel takes numbers and pointers to numbers, no structs");
}
template <class T> void append_parameter(char*& end) {
    if constexpr (std::is_pointer_v<T>) {
        using Pointee = std::remove_pointer_t<T>;
        end = stpcpy(end, std::is_const_v<Pointee> ? "*const " : "*");
        end = stpcpy(end, type_name<Pointee>());
    } else {
        end = stpcpy(end, type_name<T>());
    }
    end = stpcpy(end, ",");
}
template <class... A> const char* parameters(void (*)(A...)) {
    static char text[16 * sizeof...(A) + 1];
    char* end = text;
    (append_parameter<A>(end), ...);
    return text;
}
template <auto kernel, class... A, size_t... I>
void call(void (*)(A...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A>*>(args[I])...);
}
template <auto kernel, class... A> void call(void (*signature)(A...), void** args) {
    call<kernel>(signature, args, std::index_sequence_for<A...>{});
}

}  // namespace cuemu

// After a kernel's source: its entry for ctypes. The section's bounds come from the linker.
#define CUEMU_ENTRY extern "C" __attribute__((visibility("default"))) const char*
#define CUEMU_EXPORT(name, max_threads)                                                          \
    extern "C" char __start_cuemu_shared_##name[] __attribute__((weak, visibility("hidden")));   \
    extern "C" char __stop_cuemu_shared_##name[] __attribute__((weak, visibility("hidden")));    \
    CUEMU_ENTRY cuemu_parameters_##name() { return cuemu::parameters(name); }                    \
    CUEMU_ENTRY cuemu_launch_##name(const cuemu::Launch* launch, void** args) {                  \
        auto body = [](void** args) { cuemu::call<name>(name, args); };                          \
        return cuemu::run({body, max_threads, __start_cuemu_shared_##name,                       \
                           __stop_cuemu_shared_##name}, *launch, args);                          \
    }
