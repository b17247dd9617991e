"""The emulator itself: it computes as CUDA says, and notices the bugs that it is there for."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.support.cuda_on_cpu.emulator import (
    CpuRawModule,
    EmulatedGpu,
    assert_clean,
    sanitizer_report,
)

HEAD = "#ifndef CUEMU\n#include <cuda_fp16.h>\n#endif\n"


def kernel(body: str, parameters: str = "float* out", bounds: str = "") -> str:
    return f'{HEAD}extern "C" __global__ void {bounds} k({parameters}) {{\n{body}\n}}\n'


def run(
    body: str,
    *,
    block: tuple[int, ...] = (64,),
    grid: tuple[int, ...] = (1,),
    shared_mem: int = 0,
    seed: int = 0,
    options: Sequence[str] = (),
    size: int = 64,
) -> np.ndarray:
    """What a kernel with the one parameter `float* out` leaves there; -7 where it wrote nothing."""
    out = np.full(size, -7, np.float32)
    function = CpuRawModule(kernel(body), options).get_function("k", seed=seed)
    function(grid, block, (out,), shared_mem=shared_mem)
    return out


THREADS = np.arange(64, dtype=np.float32)

# ---- computes as CUDA says ----------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("-DCUEMU_UCONTEXT",)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_threads_meet_at_barriers(options: tuple[str, ...], seed: int) -> None:
    reverse = """
    __shared__ float s[64];
    int t = threadIdx.x;
    s[t] = t;
    __syncthreads();
    out[t] = s[63 - t];"""
    assert np.array_equal(run(reverse, options=options, seed=seed), THREADS[::-1])


def test_every_thread_and_block_runs_once() -> None:
    body = """
    int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    int place = block * blockDim.x * blockDim.y * blockDim.z + thread;
    atomicAdd(&out[place], place + 8.f);"""
    for seed in (0, 1, 5):
        out = run(body, grid=(2, 3, 2), block=(5, 2, 3), size=360, seed=seed)
        assert np.array_equal(out, np.arange(360) + 1)


def test_seeds_change_the_order_of_threads_and_blocks() -> None:
    body = "out[threadIdx.x + 32 * blockIdx.x] = atomicAdd(&out[63], 1.f);"
    orders = {run(body, grid=(2,), block=(31,), seed=seed).tobytes() for seed in range(4)}
    assert len(orders) == 4


def test_dynamic_shared_memory_is_poisoned_for_every_block() -> None:
    body = """
    extern __shared__ float s[];
    out[blockIdx.x * 32 + threadIdx.x] = s[threadIdx.x];
    s[threadIdx.x] = 1;"""
    assert np.isnan(run(body, block=(32,), grid=(2,), shared_mem=128)).all()


def test_static_shared_memory_is_poisoned_for_every_block() -> None:
    body = """
    __shared__ float s[32];
    out[blockIdx.x * 32 + threadIdx.x] = s[threadIdx.x];
    s[threadIdx.x] = 1;"""
    assert np.isnan(run(body, block=(32,), grid=(2,))).all()


def test_votes_of_the_block() -> None:
    body = """
    int t = threadIdx.x;
    int count = __syncthreads_count(t % 3 == 0);
    int any = __syncthreads_or(t == 63), none = __syncthreads_or(t > 63);
    int all = __syncthreads_and(t < 64), few = __syncthreads_and(t < 63);
    out[t] = count + 100 * any + 1000 * none + 10000 * all + 100000 * few;"""
    for seed in (0, 3):
        assert np.array_equal(run(body, seed=seed), np.full(64, 22 + 100 + 10000))


def test_shuffles_move_values_between_lanes() -> None:
    lanes = THREADS.astype(np.int64) % 32
    warp = THREADS - lanes
    all_lanes = "0xffffffffu"
    cases = {
        f"__shfl_sync({all_lanes}, v, 5)": warp + 5,
        f"__shfl_sync({all_lanes}, v, 3, 8)": warp + (lanes & ~7) + 3,
        f"__shfl_xor_sync({all_lanes}, v, 9)": warp + (lanes ^ 9),
        f"__shfl_up_sync({all_lanes}, v, 2)": np.where(lanes >= 2, THREADS - 2, THREADS),
        f"__shfl_down_sync({all_lanes}, v, 7, 16)": np.where(
            lanes % 16 + 7 < 16, THREADS + 7, THREADS
        ),
    }
    body = "".join(f"out[{i} * 64 + threadIdx.x] = {call};" for i, call in enumerate(cases))
    out = run(f"float v = threadIdx.x; {body}", size=64 * len(cases), seed=4).reshape(-1, 64)
    for got, (call, want) in zip(out, cases.items(), strict=True):
        assert np.array_equal(got, want), call


def test_half_warps_may_go_their_own_ways() -> None:
    body = """
    unsigned lane = threadIdx.x % 32, mask = lane < 16 ? 0xffffu : 0xffff0000u;
    float sum = threadIdx.x;
    for (int step = 8; step; step >>= 1) sum += __shfl_xor_sync(mask, sum, step);
    if (lane >= 16) sum += __ballot_sync(mask, lane == 20) == 1u << 20;
    out[threadIdx.x] = sum;"""
    sums = THREADS.reshape(4, 16).sum(axis=1) + [0, 1, 0, 1]
    assert np.array_equal(run(body, seed=3), np.repeat(sums, 16))


def test_votes_of_a_warp_and_a_last_warp_that_is_not_full() -> None:
    body = """
    unsigned all = 0xffffffffu;
    int t = threadIdx.x;
    unsigned votes = __ballot_sync(all, t >= 32);
    __syncwarp();
    out[t] = __popc(votes) + 100 * __any_sync(all, t == 39) + 1000 * __all_sync(all, t >= 32);"""
    out = run(body, block=(40,), size=40)
    assert np.array_equal(out, np.repeat([0, 1108], [32, 8]))


def test_atomics_lose_nothing() -> None:
    body = """
    __shared__ int sum, most, least;
    __shared__ unsigned bits, taken;
    int t = threadIdx.x;
    if (t == 0) { sum = 0; most = -9; least = 99; bits = 0; taken = 0; }
    __syncthreads();
    atomicAdd(&sum, t); atomicMax(&most, t); atomicMin(&least, t); atomicOr(&bits, 1u << t % 32);
    unsigned winner = atomicCAS(&taken, 0u, t + 1u) == 0u;
    __syncthreads();
    if (t == 0) { out[0] = sum; out[1] = most; out[2] = least; out[3] = bits == ~0u; }
    if (winner) out[4] = taken == t + 1u;"""
    assert run(body, seed=7)[:5].tolist() == [2016, 63, 0, 1, 1]


def test_half_is_rounded_as_numpy_does() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    near = np.concatenate([rng.normal(0, 3e-5, 50_000), np.arange(65400, 65600, 0.25)])
    given = np.concatenate([values[np.isfinite(values)], near.astype(np.float32)])
    module = CpuRawModule(
        kernel(
            "int i = blockIdx.x * 256 + threadIdx.x;\n"
            "if (i < n) { half[i] = __float2half(x[i]); back[i] = __half2float(half[i]); }",
            "const float* x, __half* half, float* back, int n",
        )
    )
    half, back = np.zeros(len(given), np.float16), np.zeros_like(given)
    grid = (len(given) // 256 + 1,)
    module.get_function("k")(grid, (256,), (given, half, back, np.int32(len(given))))
    with np.errstate(over="ignore"):
        want = given.astype(np.float16)
    assert np.array_equal(half.view(np.uint16), want.view(np.uint16))
    assert np.array_equal(back, want.astype(np.float32))


def test_numbers_as_a_gpu_has_them() -> None:
    body = """
    float nan = nanf("");
    out[0] = min(nan, 2.f); out[1] = max(3.f, nan); out[2] = min(2, 5u); out[3] = max(1.5f, 2.5f);
    out[4] = __float2int_rn(2.5f); out[5] = __float2int_rn(3e9f) == 2147483647;
    out[6] = __float2int_rz(nan); out[7] = __float2int_rd(-1.5f); out[8] = __saturatef(nan);
    out[9] = __clz(1) + __ffs(8); out[10] = __uint_as_float(__float_as_uint(1.5f));
    out[11] = __float2uint_rn(-3.f);"""
    want = [2, 3, 2, 2.5, 2, 1, 0, -2, 0, 35, 1.5, 0]
    assert run(body, block=(1,))[:12].tolist() == want


def test_products_are_rounded_before_sums() -> None:
    body = "float a = out[0]; out[1] = a * a - out[2];"
    module = CpuRawModule(kernel(body))
    a = np.float32(1 + 2**-20)
    out = np.array([a, 0, a * a], np.float32)
    module.get_function("k")((1,), (1,), (out,))
    assert out[1] == 0  # fused, the product's lost bits would remain


# ---- notices what a GPU would refuse or hang on ------------------------------------------------

HANGS = {
    "barrier in a branch": (
        "if (threadIdx.x < 40) __syncthreads(); else out[0] = 1;",
        "exits while others of its block wait",
    ),
    "two barriers": (
        "if (threadIdx.x < 40) __syncthreads();\nelse __syncthreads();",
        r"kernel\.cu:6.*divergent __syncthreads: others of its block wait at kernel\.cu:5",
    ),
    "exit before a barrier": (
        "if (threadIdx.x < 8) return; __syncthreads();",
        "after 8 threads of its block have exited",
    ),
    "a lane that never comes": (
        "if (threadIdx.x < 40) out[0] = __shfl_xor_sync(~0u, 1.f, 1); __syncthreads();",
        r"deadlock in block \(0, 0, 0\)",
    ),
    "a lane that has exited": (
        "if (threadIdx.x < 8) return; out[0] = __shfl_xor_sync(~0u, 1.f, 1);",
        "names lane 0, which has exited",
    ),
    "a mask without the caller": (
        "out[threadIdx.x] = __shfl_sync(0xffffu, 1.f, 0);",
        "mask 0xffff lacks the calling lane 16",
    ),
    "a source outside the mask": (
        "if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_sync(0xffffu, 1.f, 16);",
        "reads lane 16, which is not in mask 0xffff",
    ),
    "masks that differ": (
        "unsigned m = threadIdx.x % 2 ? 0x3u : 0x7u; if (threadIdx.x < 3) __syncwarp(m);",
        "which waits at|lacks the calling lane",
    ),
    "different operations of one mask": (
        "if (threadIdx.x % 2) __syncwarp();\nelse out[0] = __any_sync(~0u, 1);",
        "names lane 0, which waits at",
    ),
}


@pytest.mark.parametrize("bug", HANGS)
def test_a_hang_becomes_an_error(bug: str) -> None:
    # One text for all, for the compiler's time; #line counts as `kernel` does.
    bodies = [body for body, _ in HANGS.values()]
    heads = [f'#line 4\nextern "C" __global__ void k{i}(float* out) {{' for i in range(len(HANGS))]
    text = "".join(f"{head}\n{body}\n}}\n" for head, body in zip(heads, bodies, strict=True))
    function = CpuRawModule(text).get_function(f"k{list(HANGS).index(bug)}")
    with pytest.raises(RuntimeError, match=HANGS[bug][1]):
        function((1,), (64,), (np.zeros(64, np.float32),))


def test_limits_of_a_launch() -> None:
    for block in ((1025,), (8, 8, 17), (0,), (1, 1, 65)):
        with pytest.raises(RuntimeError, match=r"CUDA takes 1\.\.1024 threads"):
            run("out[0] = 1;", block=block)
    for grid in ((1, 65536), (1, 1, 65536), (0,)):
        with pytest.raises(RuntimeError, match=r"CUDA takes 1\.\.2147483647"):
            run("out[0] = 1;", grid=grid)
    with pytest.raises(RuntimeError, match="4096 bytes of static and 45057 of dynamic"):
        run("__shared__ float s[1024]; s[threadIdx.x] = 1; out[0] = s[0];", shared_mem=45057)
    bounded = CpuRawModule(kernel("out[0] = 1;", bounds="__launch_bounds__(4 * 8)"))
    with pytest.raises(RuntimeError, match="block of 33 threads, but __launch_bounds__ says 32"):
        bounded.get_function("k")((1,), (33,), (np.zeros(1, np.float32),))


def test_shared_memory_is_counted_for_each_kernel() -> None:
    body = """{ __shared__ int s[10000]; s[blockIdx.x + *out] = 7; *out = s[blockIdx.x]; }"""
    heads = [f'extern "C" __global__ void {name}(int* out) ' for name in ("first", "second")]
    module = CpuRawModule("".join(f"{head}{body}\n" for head in heads))
    out = np.zeros(1, np.int32)
    module.get_function("second")((1,), (1,), (out,), shared_mem=9152)
    assert out[0] == 7
    with pytest.raises(RuntimeError, match="40000 bytes of static"):
        module.get_function("second")((1,), (1,), (out,), shared_mem=9153)


# ---- arguments ----------------------------------------------------------------------------------

FLOATS, INTS = np.zeros(8, np.float32), np.zeros(8, np.int32)
WRONG_ARGUMENTS = {
    "Python int": ((FLOATS, FLOATS, 3, np.float32(1)), "got int; pass an array"),
    "Python float": ((FLOATS, FLOATS, np.int32(3), 1.0), "got float; pass an array"),
    "wide scalar": ((FLOATS, FLOATS, np.int64(3), np.float32(1)), "takes i4, got i8"),
    "double scalar": ((FLOATS, FLOATS, np.int32(3), np.float64(1)), "takes f4, got f8"),
    "unsigned scalar": ((FLOATS, FLOATS, np.uint32(3), np.float32(1)), "takes i4, got u4"),
    "ints for floats": ((INTS, FLOATS, np.int32(3), np.float32(1)), "array of i4"),
    "array for a number": ((FLOATS, FLOATS, INTS, np.float32(1)), "takes the number i4"),
    "number for an array": ((FLOATS, np.float32(1), np.int32(3), np.float32(1)), r"\*f4, got f4"),
    "strided": ((FLOATS[::2], FLOATS, np.int32(3), np.float32(1)), "not contiguous"),
    "too few": ((FLOATS, FLOATS, np.int32(3)), "takes 4 arguments"),
}


@pytest.mark.parametrize("case", WRONG_ARGUMENTS)
def test_arguments_must_fit(case: str) -> None:
    args, message = WRONG_ARGUMENTS[case]
    module = CpuRawModule(kernel("y[0] = x[0];", "const float* x, float* y, int n, float f"))
    with pytest.raises(TypeError, match=message):
        module.get_function("k")((1,), (1,), args)


def test_read_only_arrays_are_for_const_pointers() -> None:
    module = CpuRawModule(kernel("y[0] = x[0];", "const float* __restrict__ x, float* y"))
    frozen = np.ones(1, np.float32)
    frozen.flags.writeable = False
    out = np.zeros(1, np.float32)
    module.get_function("k")((1,), (1,), (frozen, out))
    assert out[0] == 1
    with pytest.raises(TypeError, match="read-only"):
        module.get_function("k")((1,), (1,), (out, frozen))


def test_vectors_need_whole_aligned_elements() -> None:
    module = CpuRawModule(kernel("x[0].x = 1;", "float4* x"))
    memory = np.zeros(16, np.float32)
    start = (-memory.ctypes.data // 4) % 4  # the first float at 16 bytes
    module.get_function("k")((1,), (1,), (memory[start : start + 8],))
    assert memory[start] == 1
    for wrong in (memory[start + 1 : start + 9], memory[start : start + 6]):
        with pytest.raises(TypeError, match="aligned to 16 bytes"):
            module.get_function("k")((1,), (1,), (wrong,))


def test_text_that_does_not_compile_says_where() -> None:
    with pytest.raises(ValueError, match=r"kernel\.cu:6: error|kernel\.cu:6:\d+: error"):
        CpuRawModule(kernel("\nnothing_of_this_name();"))
    with pytest.raises(ValueError, match=r"no .* function other"):
        CpuRawModule(kernel("out[0] = 1;")).get_function("other")
    with pytest.raises(ValueError, match="declare it in the kernel"):
        CpuRawModule("__device__ void f() { __shared__ int s; }\n" + kernel("f();"))


# ---- sanitizers and planted bugs -----------------------------------------------------------------

ROTATE = kernel(
    """
    __shared__ float s[64];
    int t = threadIdx.x, i = blockIdx.x * 64 + t;
    s[t] = x[i];
    __syncthreads();
    float v = s[(t + 1) % 64];
    __syncthreads();
    s[t] = v + __shfl_xor_sync(~0u, v, 1);
    __syncwarp();
    out[i] = s[t ^ 1];""",
    "const float* x, float* out",
)


def rotate(gpu: EmulatedGpu, text: str = ROTATE, size: int = 128) -> np.ndarray:
    x, out = np.arange(size, dtype=np.float32), gpu.xp.empty(size, np.float32)
    module = CpuRawModule(text, sanitize=gpu.sanitize)
    module.get_function("k", seed=gpu.seed)((2,), (64,), (x, out))
    return np.asarray(out)


def rotated_right(gpu: EmulatedGpu) -> None:
    moved = (np.arange(128).reshape(2, 64)[:, (np.arange(64) + 1) % 64]).reshape(-1)
    assert np.array_equal(rotate(gpu), moved + moved.reshape(-1, 2)[:, ::-1].reshape(-1))


def without_barrier(gpu: EmulatedGpu) -> None:
    rotate(gpu, ROTATE.replace("__syncthreads();", "", 1))


def without_second_barrier(gpu: EmulatedGpu) -> None:
    rotate(gpu, "".join(ROTATE.rsplit("__syncthreads();", 1)))


def without_syncwarp(gpu: EmulatedGpu) -> None:
    rotate(gpu, ROTATE.replace("__syncwarp();", ""))


def past_the_end(gpu: EmulatedGpu) -> None:
    rotate(gpu, size=127)


def past_the_end_of_a_view(gpu: EmulatedGpu) -> None:
    memory = np.zeros(1000, np.float32)
    module = CpuRawModule(ROTATE, sanitize=gpu.sanitize)
    module.get_function("k")((2,), (64,), (memory[:128], memory[200:327]))


def past_shared_memory(gpu: EmulatedGpu) -> None:
    rotate(gpu, ROTATE.replace("(t + 1) % 64", "t + 1"))


def past_dynamic_shared_memory(gpu: EmulatedGpu) -> None:
    text = kernel("extern __shared__ float s[]; s[threadIdx.x] = 1; out[0] = s[0];")
    function = CpuRawModule(text, sanitize=gpu.sanitize).get_function("k")
    function((1,), (64,), (np.zeros(1, np.float32),), shared_mem=252)


def misaligned_vector(gpu: EmulatedGpu) -> None:
    text = kernel("*reinterpret_cast<float4*>(out + 1) = make_float4(1, 2, 3, 4);")
    function = CpuRawModule(text, sanitize=gpu.sanitize).get_function("k")
    function((1,), (1,), (np.zeros(8, np.float32),))


def views_of_one_block(gpu: EmulatedGpu) -> None:
    memory = np.arange(256, dtype=np.float32)
    module = CpuRawModule(ROTATE, sanitize=gpu.sanitize)
    module.get_function("k")((2,), (64,), (memory[:128], memory[64:192]))
    assert np.array_equal(memory[:64], np.arange(64))
    assert np.array_equal(memory[192:], np.arange(192, 256))
    assert memory[64] == 1 + 2


@pytest.mark.parametrize("sanitize", ["thread", "address"])
def test_a_right_kernel_is_clean(sanitize: str) -> None:
    rotated_right(EmulatedGpu(seed=2))
    assert_clean(rotated_right, sanitize=sanitize)  # type: ignore[arg-type]


@pytest.mark.parametrize("call", [without_barrier, without_second_barrier, without_syncwarp])
def test_a_missing_barrier_is_a_race(call: Callable[[EmulatedGpu], None]) -> None:
    report = sanitizer_report(call, sanitize="thread")
    assert "WARNING: ThreadSanitizer: data race" in report
    assert "kernel.cu" in report


def test_a_missing_barrier_changes_results_with_the_order() -> None:
    text = ROTATE.replace("__syncthreads();", "", 1)
    assert not np.array_equal(rotate(EmulatedGpu(seed=0), text), rotate(EmulatedGpu(seed=1), text))


BOUNDS = [past_the_end, past_the_end_of_a_view, past_shared_memory, past_dynamic_shared_memory]


@pytest.mark.parametrize("call", BOUNDS)
def test_memory_beyond_the_end_is_noticed(call: Callable[[EmulatedGpu], None]) -> None:
    report = sanitizer_report(call, sanitize="address")
    assert "AddressSanitizer" in report or "out of bounds" in report  # from UBSan, of a known size
    assert "kernel.cu" in report


def test_misaligned_vectors_are_noticed() -> None:
    assert "misaligned address" in sanitizer_report(misaligned_vector, sanitize="address")


def test_views_are_written_back_where_they_changed() -> None:
    views_of_one_block(EmulatedGpu())
    assert_clean(views_of_one_block, sanitize="address")


def test_a_failed_call_is_not_clean() -> None:
    with pytest.raises(AssertionError, match="after 8 threads"):
        assert_clean(exits_early, sanitize="thread")


def exits_early(gpu: EmulatedGpu) -> None:
    text = kernel("if (threadIdx.x < 8) return; __syncthreads(); out[0] = 1;")
    function = CpuRawModule(text, sanitize=gpu.sanitize).get_function("k")
    function((1,), (64,), (np.zeros(1, np.float32),))


def test_a_bug_must_be_planted_in_one_place() -> None:
    with pytest.raises(ValueError, match="0 times"):
        EmulatedGpu(replace=[("text that no kernel has", "")])
    with pytest.raises(ValueError, match="not once"):
        EmulatedGpu(replace=[("__global__", "")])


def test_fresh_device_memory_is_not_zero() -> None:
    xp = EmulatedGpu().xp
    assert np.isnan(xp.empty((2, 3), np.float32)).all()
    assert (xp.empty(4, np.int32) == -1).all()
    assert (xp.zeros(4, np.int32) == 0).all()


def test_libraries_are_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text = kernel("out[0] = 1;")
    CpuRawModule(text)
    libraries = set(tmp_path.rglob("*.so"))
    assert len(libraries) == 1
    CpuRawModule(text)
    assert set(tmp_path.rglob("*.so")) == libraries
    CpuRawModule(text, ("-DOTHER",))
    assert len(set(tmp_path.rglob("*.so"))) == 2
