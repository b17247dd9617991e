// Picture planes -> network input, a batch of different pictures in one launch: the CUDA twin of
// kernels/preprocess.py, which defines every number here. Results are equal to the CPU twin's: the
// same taps, in the same order, vertical ones first.
//
//   value(x, y) = sum over j of columns.weight(x, j) * sum over i of rows.weight(y, i) * byte(i, j)
//
//   grid    (ceil(W / 32), ceil(H / 8), B), of the widest and the highest picture before turning
//   block   (256)
//   shared  12.1 KB
//
// A block makes a tile of 32 columns and 8 rows, each of its warps one row: the lanes first read
// the source rows side by side, four bytes each, and leave the vertical sums in the warp's own
// shared memory; then each lane takes the horizontal taps of its column from there. Where the
// source of a tile is wider than that memory it goes by in chunks, from left to right, so the order
// of the sums stays. No thread waits for another warp, but in pictures turned by a quarter:
// their tile goes through shared memory once more, so that neighbouring threads write neighbouring
// numbers.
//
// Everything that differs between pictures stands in a table of structs, gpu_preprocess.PICTURE.

#ifndef CUEMU
#include <cuda_fp16.h>
#endif

#define COLUMNS 32           // of a tile, one for each lane of a warp
#define ROWS 8               // of a tile, one for each warp of a block
#define THREADS 256
#define CHUNK 384            // vertical sums held for each row; whole pixels of any format, words
#define PITCH (CHUNK + 4)    // so that 8 rows x 4 columns, read at once, lie in 32 banks
#define WORD 4               // bytes that a lane reads at once

enum Format { RGB24, BGR24, NV12, YUV420P };  // as gpu_preprocess.FORMATS

// A plane of bytes; aligned: every row begins at a multiple of four bytes.
struct Plane {
    const unsigned char* bytes;
    long long pitch;
    int row_bytes, aligned;
};

// Taps along one axis: source first[i] + t of output i has weights[t * length + i]. Sources seen
// by outputs 32 k .. 32 k + 31 are spans[2 k] up to but not including spans[2 k + 1].
struct ResizeAxis {
    const int* first;
    const float* weights;
    const int* spans;
    int count, length, source_length;
};

struct Picture {
    Plane planes[3];
    ResizeAxis rows, columns, chroma_rows, chroma_columns;
    float luma_offset, luma_gain, v_to_r, u_to_g, v_to_g, u_to_b;
    float gain[3], bias[3];                  // RGB
    int height, width;                       // of the network input before turning
    int origin, step_x, step_y, quarter;     // (x, y) is written to origin + x step_x + y step_y
    int format;
};

static_assert(sizeof(Plane) == 24 && sizeof(ResizeAxis) == 40 && sizeof(Picture) == 312,
              "gpu_preprocess.py lays out the same structs");

// ---- resize ------------------------------------------------------------------------------------

// Bytes begin .. begin + 3 of a row, the first one lowest; zero beyond its end.
__device__ __forceinline__ unsigned four_bytes(const Plane& plane, int row, int begin)
{
    const unsigned char* bytes = plane.bytes + row * plane.pitch + begin;
    if (plane.aligned && begin + WORD <= plane.row_bytes) return *(const unsigned*)bytes;
    unsigned word = 0;
#pragma unroll 1  // seldom taken: keep it small
    for (int i = 0; i < WORD; i++)
        if (begin + i < plane.row_bytes) word |= (unsigned)bytes[i] << 8 * i;
    return word;
}

// sums[b - begin] = sum of weight * (byte b of source row - offset), for output row y; by one warp.
__device__ __forceinline__ void blend_rows(const Plane& plane, const ResizeAxis& rows, int y,
                                           float offset, int begin, int end, float* sums)
{
    const int first = rows.first[y];
    const float* weights = rows.weights + y;
    float total = 0.0f;
#pragma unroll 1
    for (int tap = 0; tap < rows.count; tap++) total += weights[tap * rows.length];
    const float base = -offset * total;
    for (int b = begin + WORD * (threadIdx.x % COLUMNS); b < end; b += WORD * COLUMNS) {
        float4 sum = make_float4(base, base, base, base);
        for (int tap = 0; tap < rows.count; tap++) {
            const float weight = weights[tap * rows.length];
            if (weight == 0.0f) continue;  // also keeps rows beyond the last from being read
            const unsigned word = four_bytes(plane, first + tap, b);
            sum.x += weight * (float)(word & 255);
            sum.y += weight * (float)(word >> 8 & 255);
            sum.z += weight * (float)(word >> 16 & 255);
            sum.w += weight * (float)(word >> 24);
        }
        *(float4*)(sums + b - begin) = sum;
    }
}

// Both resizes at (x, y) of a plane with CHANNELS bytes a pixel; a warp has one y and 32 x.
template <int CHANNELS>
__device__ __forceinline__ void resize(const Plane& plane, const ResizeAxis& rows, const ResizeAxis& columns,
                                       int x, int y, float offset, float* sums, float* result)
{
    for (int c = 0; c < CHANNELS; c++) result[c] = 0.0f;
    const int span_end = columns.spans[x / COLUMNS * 2 + 1];
    const int first = x < columns.length ? columns.first[x] : span_end;
    const int last = min(first + columns.count, columns.source_length);
    int begin = columns.spans[x / COLUMNS * 2] / WORD * WORD;
    for (; begin < span_end; begin += CHUNK / CHANNELS) {
        const int end = min(begin + CHUNK / CHANNELS, span_end);
        blend_rows(plane, rows, y, offset, begin * CHANNELS, end * CHANNELS, sums);
        __syncwarp();  // vertical sums are written
#pragma unroll 1  // unrolled, it spills registers
        for (int j = max(first, begin); j < min(last, end); j++) {
            const float weight = columns.weights[(j - first) * columns.length + x];
            for (int c = 0; c < CHANNELS; c++)
                result[c] += weight * sums[(j - begin) * CHANNELS + c];
        }
        __syncwarp();  // vertical sums are read
    }
}

// ---- colour ------------------------------------------------------------------------------------

__device__ __forceinline__ float clipped(float grey_level)
{
    return fminf(fmaxf(grey_level, 0.0f), 255.0f);
}

// RGB grey levels at (x, y) of the network input before turning.
__device__ __forceinline__ void find_rgb(const Picture& p, int x, int y, float* sums, float* rgb)
{
    if (p.format == RGB24 || p.format == BGR24) {
        float pixel[3];
        resize<3>(p.planes[0], p.rows, p.columns, x, y, 0.0f, sums, pixel);
        const bool reverse = p.format == BGR24;
        rgb[0] = reverse ? pixel[2] : pixel[0];
        rgb[1] = pixel[1];
        rgb[2] = reverse ? pixel[0] : pixel[2];
        return;
    }
    float luma, uv[2];
    resize<1>(p.planes[0], p.rows, p.columns, x, y, p.luma_offset, sums, &luma);
    if (p.format == NV12) {
        resize<2>(p.planes[1], p.chroma_rows, p.chroma_columns, x, y, 128.0f, sums, uv);
    } else {
        resize<1>(p.planes[1], p.chroma_rows, p.chroma_columns, x, y, 128.0f, sums, &uv[0]);
        resize<1>(p.planes[2], p.chroma_rows, p.chroma_columns, x, y, 128.0f, sums, &uv[1]);
    }
    const float grey = p.luma_gain * luma;
    rgb[0] = clipped(grey + p.v_to_r * uv[1]);
    rgb[1] = clipped(grey + p.u_to_g * uv[0] + p.v_to_g * uv[1]);
    rgb[2] = clipped(grey + p.u_to_b * uv[0]);
}

// ---- batch -------------------------------------------------------------------------------------

__device__ __forceinline__ void store(float* place, float value) { *place = value; }
__device__ __forceinline__ void store(__half* place, float value)
{
    *place = __float2half_rn(value);
}

template <typename Number>
__device__ __forceinline__ void preprocess(const unsigned char* table, Number* out, int area,
                                           float* tile)
{
    const Picture& p = ((const Picture*)table)[blockIdx.z];
    const int left = blockIdx.x * COLUMNS, top = blockIdx.y * ROWS;
    if (left >= p.width || top >= p.height) return;  // all threads of the block
    int column = threadIdx.x % COLUMNS, row = threadIdx.x / COLUMNS;
    float* sums = tile + row * PITCH;  // of this warp alone
    float rgb[3] = {0.0f, 0.0f, 0.0f};
    if (top + row < p.height) find_rgb(p, left + column, top + row, sums, rgb);
    if (p.quarter) {
        for (int c = 0; c < 3; c++) sums[c * COLUMNS + column] = rgb[c];
        __syncthreads();  // turned tile is written
        column = threadIdx.x / ROWS;
        row = threadIdx.x % ROWS;
        for (int c = 0; c < 3; c++) rgb[c] = tile[row * PITCH + c * COLUMNS + column];
    }
    const int x = left + column, y = top + row;
    if (x >= p.width || y >= p.height) return;
    Number* place = out + (size_t)blockIdx.z * 3 * area + p.origin + x * p.step_x + y * p.step_y;
    for (int c = 0; c < 3; c++) store(place + (size_t)c * area, rgb[c] * p.gain[c] + p.bias[c]);
}

// table (B) Picture; out (B, 3, H, W); area = H * W.
extern "C" __global__ void __launch_bounds__(THREADS)
preprocess_float(const unsigned char* table, float* out, int area)
{
    alignas(16) __shared__ float tile[ROWS * PITCH];
    preprocess(table, out, area, tile);
}

extern "C" __global__ void __launch_bounds__(THREADS)
preprocess_half(const unsigned char* table, __half* out, int area)
{
    alignas(16) __shared__ float tile[ROWS * PITCH];
    preprocess(table, out, area, tile);
}
