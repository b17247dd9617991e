// Heatmap pyramid and tags -> peaks, for a batch: the CUDA twin of kernels/peaks.py, which defines
// every number here. A map is one (image, keypoint); results are equal to the CPU twin's.
//
//     mirror_tags     (flip only) tags of both passes side by side
//     average_levels  levels -> heat (mean at the highest level's size) and ceilings of its tiles
//     find_in_tiles   heat -> the best peaks of every tile of the map at network-input size
//     select_peaks    those lists -> the best of the map, their tags and offsets
//
// The map at network-input size exists tile by tile in shared memory. Candidates carry a key
//
//     score's bits (a positive float orders like its bits) << 32 | 2^32 - 1 - (y * width + x)
//
// so that "best first, of equal ones the first in row-major order" is "greatest key first". Keys
// are unique: a key's rank is the number of greater ones, whatever order threads found them in.
//
// A shared atomic hands out places for candidates. It decides nothing, for ranks follow.

#ifndef CUEMU
#include <cuda_fp16.h>
#endif
#include "maps.cuh"

typedef unsigned long long Key;

#define THREADS 256
#define TILE 32          // side of a block's tile, in heat pixels (average) or output pixels (find)
#define MAX_LEVELS 4     // these four limits are checked in gpu_peaks.py
#define MAX_RADIUS 7     // of the non-maximum suppression: nms_kernel up to 15
#define MAX_PEAKS 256    // for each keypoint
#define CEILING_SIDE 8   // heat pixels, as gpu_peaks.TILE_SIDE
#define RING (TILE + 2)               // a tile and one pixel around it
#define TILES (TILE / CEILING_SIDE)   // of ceilings along a block's tile
#define WINDOW 768       // candidates that select_peaks ranks at a time, beside the best so far
#define ALL_LANES 0xffffffffu
#define MINUS_INFINITY __uint_as_float(0xff800000u)
#define LARGEST_FINITE __uint_as_float(0x7f7fffffu)
#define CEILING_SLACK 9.5367431640625e-07f  // 2^-20, kernels.sampling.CEILING_SLACK

// The higher of two numbers; a NaN is never higher.
__device__ __forceinline__ float higher(float so_far, float value)
{
    return value > so_far ? value : so_far;
}

__device__ __forceinline__ int thread_of_block()
{
    return threadIdx.y * blockDim.x + threadIdx.x;
}

// ---- average -----------------------------------------------------------------------------------

__device__ __forceinline__ float as_float(float value) { return value; }
__device__ __forceinline__ float as_float(__half value) { return __half2float(value); }

// One map of a level: plain, or the mean of a plain and a mirrored pass.
template <typename Number>
struct Plane {
    const Number* plain;
    const Number* mirrored;  // 0 without flip
    int width;

    __device__ __forceinline__ float at(int x, int y) const
    {
        const float value = as_float(plain[(size_t)y * width + x]);
        if (mirrored == 0) return value;
        return (value + as_float(mirrored[(size_t)y * width + (width - 1 - x)])) * 0.5f;
    }
};

template <typename Number>
__device__ __forceinline__ Plane<Number> plane_of(const Number* level, int height, int width,
                                                  int map, int mirrored_map)
{
    const size_t area = (size_t)height * width;
    Plane<Number> plane;
    plane.plain = level + area * map;
    plane.mirrored = mirrored_map < 0 ? 0 : level + area * mirrored_map;
    plane.width = width;
    return plane;
}

// A level's map upsampled to heat's size at (x, y). As on the CPU, an axis x of equal length is read
// and not blended, which matters beside numbers that are not finite.
template <typename Number>
__device__ __forceinline__ float upsampled_level(const Plane<Number>& plane, const Grid& grid, int x,
                                              int y)
{
    const int y0 = grid.rows.first[y], y1 = grid.rows.second[y];
    float upper, lower;
    if (grid.columns.length_in < grid.columns.length_out) {
        const int x0 = grid.columns.first[x], x1 = grid.columns.second[x];
        const float wx = grid.columns.weight[x];
        upper = (1.0f - wx) * plane.at(x0, y0) + wx * plane.at(x1, y0);
        lower = (1.0f - wx) * plane.at(x0, y1) + wx * plane.at(x1, y1);
    } else {
        upper = plane.at(x, y0);
        lower = plane.at(x, y1);
    }
    const float wy = grid.rows.weight[y];
    return (1.0f - wy) * upper + wy * lower;
}

// heat (B, K, h, w) = mean of the levels (B or 2B, K, ., .), added low to high, and
// ceiling (B, K, ceil(h / 8), ceil(w / 8)): no upsampled value nearest to a pixel of a tile is higher.
//
//   grid    (ceil(w / 32), ceil(h / 32), B * K)
//   block   (256)
//   shared  5.2 KB
//
// level_sizes (num_levels, 2) int: h, w of each. level_tables: their grids' tables to heat's size,
// one after the other. flip_order (K): with flipped, the mirrored passes are the second B images
// and keypoint k of a mirrored one is flip_order[k]. A single level has heat's size and is read as
// it is; if heat is that level itself (store = 0), only ceilings are made. mean and across: shared.
template <typename Number>
__device__ __forceinline__ void average(const Number* level0, const Number* level1,
                                        const Number* level2, const Number* level3,
                                        int num_levels, const int* level_sizes,
                                        const unsigned int* level_tables, const int* flip_order,
                                        int flipped, int num_images, int num_keypoints, int height,
                                        int width, int store, float* heat, float* ceiling,
                                        float (*mean)[RING], float (*across)[TILES])
{
    const int thread = thread_of_block(), map = blockIdx.z;
    const int left = blockIdx.x * TILE, top = blockIdx.y * TILE;
    const int keypoint = map % num_keypoints, image = map / num_keypoints;
    const int mirrored_map =
        flipped ? (num_images + image) * num_keypoints + flip_order[keypoint] : -1;
    const Number* levels[MAX_LEVELS] = {level0, level1, level2, level3};

    for (int i = thread; i < RING * RING; i += THREADS) {
        const int x = left + i % RING - 1, y = top + i / RING - 1;
        float value = MINUS_INFINITY;
        if (x >= 0 && x < width && y >= 0 && y < height) {
            const unsigned int* table = level_tables;
            value = 0.0f;
#pragma unroll
            for (int level = 0; level < MAX_LEVELS; level++) {  // unrolled, to stay in registers
                if (level >= num_levels) continue;
                const int level_height = level_sizes[2 * level];
                const int level_width = level_sizes[2 * level + 1];
                const Plane<Number> plane =
                    plane_of(levels[level], level_height, level_width, map, mirrored_map);
                if (num_levels == 1) {
                    value = plane.at(x, y);
                } else {
                    const Grid grid = grid_of(table, level_height, level_width, height, width);
                    const float upsampled = upsampled_level(plane, grid, x, y);
                    value = level == 0 ? upsampled : value + upsampled;
                    table += axis_table_length(level_height, height) +
                             axis_table_length(level_width, width);
                }
            }
            if (num_levels == 2) value *= 0.5f;
            if (num_levels > 2) value /= (float)num_levels;
            const bool own = x >= left && x < left + TILE && y >= top && y < top + TILE;
            if (store && own) heat[((size_t)map * height + y) * width + x] = value;
        }
        mean[i / RING][i % RING] = value;
    }
    __syncthreads();  // mean is complete

    for (int i = thread; i < RING * TILES; i += THREADS) {
        const int y = i / TILES, j = i % TILES;
        float highest = MINUS_INFINITY;
        for (int x = 0; x < CEILING_SIDE + 2; x++)
            highest = higher(highest, mean[y][CEILING_SIDE * j + x]);
        across[y][j] = highest;
    }
    __syncthreads();  // maxima along x of the mean are complete

    const int rows = (height + CEILING_SIDE - 1) / CEILING_SIDE;
    const int columns = (width + CEILING_SIDE - 1) / CEILING_SIDE;
    if (thread < TILES * TILES) {
        const int tile_i = thread / TILES, tile_j = thread % TILES;  // within the block's tile
        const int i = top / CEILING_SIDE + tile_i, j = left / CEILING_SIDE + tile_j;
        if (i < rows && j < columns) {
            float highest = MINUS_INFINITY;
            for (int y = 0; y < CEILING_SIDE + 2; y++)
                highest = higher(highest, across[CEILING_SIDE * tile_i + y][tile_j]);
            ceiling[((size_t)map * rows + i) * columns + j] =
                highest + fabsf(highest) * CEILING_SLACK;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
average_levels_float(const float* __restrict__ level0, const float* __restrict__ level1,
                     const float* __restrict__ level2, const float* __restrict__ level3,
                     int num_levels, const int* __restrict__ level_sizes,
                     const unsigned int* __restrict__ level_tables,
                     const int* __restrict__ flip_order, int flipped, int num_images,
                     int num_keypoints, int height, int width, int store, float* heat,
                     float* __restrict__ ceiling)
{
    __shared__ float mean[RING][RING], across[RING][TILES];
    average(level0, level1, level2, level3, num_levels, level_sizes, level_tables, flip_order,
            flipped, num_images, num_keypoints, height, width, store, heat, ceiling, mean, across);
}

extern "C" __global__ void __launch_bounds__(THREADS)
average_levels_half(const __half* __restrict__ level0, const __half* __restrict__ level1,
                    const __half* __restrict__ level2, const __half* __restrict__ level3,
                    int num_levels, const int* __restrict__ level_sizes,
                    const unsigned int* __restrict__ level_tables,
                    const int* __restrict__ flip_order, int flipped, int num_images,
                    int num_keypoints, int height, int width, int store, float* heat,
                    float* __restrict__ ceiling)
{
    __shared__ float mean[RING][RING], across[RING][TILES];
    average(level0, level1, level2, level3, num_levels, level_sizes, level_tables, flip_order,
            flipped, num_images, num_keypoints, height, width, store, heat, ceiling, mean, across);
}

// both (B, K, a, b, 2T): a pixel's numbers from tags (2B, K, a, b, T) of the plain pass, then those
// of the mirrored one, turned back: x mirrored, keypoint k from flip_order[k].
//
//   grid (ceil(B * K * a * b * 2T / 256)); block (256); no shared memory
extern "C" __global__ void __launch_bounds__(THREADS)
mirror_tags(const float* __restrict__ tags, const int* __restrict__ flip_order, int num_images,
            int num_keypoints, int height, int width, int numbers, float* __restrict__ both)
{
    const size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    const size_t row = (size_t)width * 2 * numbers, area = row * height;
    if (at >= area * num_keypoints * num_images) return;
    const int number = at % (2 * numbers), x = at % row / (2 * numbers), y = at % area / row;
    const int keypoint = at / area % num_keypoints, image = at / area / num_keypoints;
    const bool mirrored = number >= numbers;
    const size_t map = mirrored
        ? (size_t)(num_images + image) * num_keypoints + flip_order[keypoint]
        : (size_t)image * num_keypoints + keypoint;
    const size_t pixel = (map * height + y) * width + (mirrored ? width - 1 - x : x);
    both[at] = tags[pixel * numbers + (mirrored ? number - numbers : number)];
}

// ---- find --------------------------------------------------------------------------------------

// The heat pixel that an output lies nearest to, as in kernels.sampling.Axis.nearest_from.
__device__ __forceinline__ int nearest(const Axis& axis, int at)
{
    return axis.weight[at] >= 0.5f ? axis.second[at] : axis.first[at];
}

// Whether a ceiling allows this thread's share of a tile's outputs to be above min_score.
__device__ __forceinline__ bool may_hold_peaks(const float* ceiling, const Grid& grid, int left,
                                               int top, float min_score)
{
    const int right = min(left + TILE, grid.columns.length_out) - 1;
    const int bottom = min(top + TILE, grid.rows.length_out) - 1;
    const int columns = (grid.columns.length_in + CEILING_SIDE - 1) / CEILING_SIDE;
    const int first_i = nearest(grid.rows, top) / CEILING_SIDE;
    const int first_j = nearest(grid.columns, left) / CEILING_SIDE;
    const int across = nearest(grid.columns, right) / CEILING_SIDE - first_j + 1;
    const int count = across * (nearest(grid.rows, bottom) / CEILING_SIDE - first_i + 1);
    bool may = false;
    for (int i = thread_of_block(); i < count; i += THREADS)
        may |= ceiling[(first_i + i / across) * columns + first_j + i % across] > min_score;
    return may;
}

// keys (B, K, I, J, M) and counts (B, K, I, J): the best M peaks of every 32x32 tile (i, j) of the
// map at the grid's size (height_out, width_out), best first. A peak is finite, above min_score,
// and no pixel within radius in x and y is higher.
//
//   grid    (J, I, B * K)
//   block   (32, 8)
//   shared  22.5 KB
//
// A tile whose ceilings say that no value in it is above min_score leaves at once, which most do.
extern "C" __global__ void __launch_bounds__(THREADS)
find_in_tiles(const float* __restrict__ heat, const float* __restrict__ ceiling,
              const unsigned int* __restrict__ table, int height, int width, int height_out,
              int width_out, int radius, float min_score, int max_peaks, Key* __restrict__ keys,
              int* __restrict__ counts)
{
    __shared__ float value[TILE + 2 * MAX_RADIUS][TILE + 2 * MAX_RADIUS];
    __shared__ float across[TILE + 2 * MAX_RADIUS][TILE];  // maxima of 2 * radius + 1 along x
    __shared__ Key candidates[TILE * TILE];
    __shared__ int num_candidates;
    const int thread = thread_of_block(), map = blockIdx.z;
    const int left = blockIdx.x * TILE, top = blockIdx.y * TILE;
    const Grid grid = grid_of(table, height, width, height_out, width_out);
    const size_t tile = ((size_t)map * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const int ceilings = ((height + CEILING_SIDE - 1) / CEILING_SIDE) *
                         ((width + CEILING_SIDE - 1) / CEILING_SIDE);

    if (thread == 0) num_candidates = 0;
    const bool may = may_hold_peaks(ceiling + (size_t)map * ceilings, grid, left, top, min_score);
    if (__syncthreads_or(may) == 0) {  // the same for all threads
        if (thread == 0) counts[tile] = 0;
        return;
    }

    const float* plane = heat + (size_t)map * height * width;
    const int side = TILE + 2 * radius;
    for (int i = thread; i < side * side; i += THREADS) {
        const int x = left + i % side - radius, y = top + i / side - radius;
        const bool outside = x < 0 || x >= width_out || y < 0 || y >= height_out;
        value[i / side][i % side] = outside ? MINUS_INFINITY : upsampled_value(plane, grid, x, y);
    }
    __syncthreads();  // value is complete

    for (int y = threadIdx.y; y < side; y += THREADS / TILE) {
        float highest = MINUS_INFINITY;
        for (int i = 0; i <= 2 * radius; i++) highest = higher(highest, value[y][threadIdx.x + i]);
        across[y][threadIdx.x] = highest;
    }
    __syncthreads();  // maxima along x of the values are complete

    for (int row = threadIdx.y; row < TILE; row += THREADS / TILE) {
        const int column = threadIdx.x, x = left + column, y = top + row;
        const float score = value[row + radius][column + radius];
        float highest = MINUS_INFINITY;
        for (int i = 0; i <= 2 * radius; i++) highest = higher(highest, across[row + i][column]);
        const bool inside = x < width_out && y < height_out;
        if (inside && score > min_score && score <= LARGEST_FINITE && !(highest > score)) {
            const unsigned int index = (unsigned int)y * width_out + x;
            candidates[atomicAdd(&num_candidates, 1)] =
                (Key)__float_as_uint(score) << 32 | (0xffffffffu - index);
        }
    }
    __syncthreads();  // candidates are complete

    const int count = num_candidates;
    for (int i = thread; i < count; i += THREADS) {
        const Key key = candidates[i];
        int rank = 0;
        for (int other = 0; other < count; other++) rank += candidates[other] > key;
        if (rank < max_peaks) keys[tile * max_peaks + rank] = key;
    }
    if (thread == 0) counts[tile] = min(count, max_peaks);
}

// ---- select ------------------------------------------------------------------------------------

// Sum of count over all threads before this one; total over all of them. One barrier.
__device__ __forceinline__ int sum_before(int count, int* warp_sums, int* total)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int sum = count;
    for (int step = 1; step < 32; step *= 2) {
        const int below = __shfl_up_sync(ALL_LANES, sum, step);
        if (lane >= step) sum += below;
    }
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads();  // warp_sums is complete
    int before = sum - count;
    *total = 0;
    for (int i = 0; i < THREADS / 32; i++) {
        if (i < warp) before += warp_sums[i];
        *total += warp_sums[i];
    }
    return before;
}

// Leaves the greatest keys of all lists in best (max_peaks), greatest first; returns how many.
// keys (num_tiles, max_peaks) and counts (num_tiles) are those of one map.
__device__ __forceinline__ int merge_lists(const Key* keys, const int* counts, int num_tiles,
                                           int max_peaks, Key* ranked, Key* best, int* warp_sums)
{
    const int share = (num_tiles + THREADS - 1) / THREADS;
    const int first = min((int)threadIdx.x * share, num_tiles);
    const int end = min(first + share, num_tiles);
    int count = 0, total = 0, kept = 0;
    for (int tile = first; tile < end; tile++) count += counts[tile];
    const int before = sum_before(count, warp_sums, &total);
    for (int start = 0; start < total; start += WINDOW) {
        int at = before - start;  // place in this window of the thread's next key
        for (int tile = first; tile < end && at < WINDOW; tile++) {
            const int length = counts[tile];
            for (int m = max(-at, 0); m < length && at + m < WINDOW; m++)
                ranked[kept + at + m] = keys[(size_t)tile * max_peaks + m];
            at += length;
        }
        __syncthreads();  // the window is complete, and best has been copied
        const int window = kept + min(total - start, WINDOW);
        for (int i = threadIdx.x; i < window; i += THREADS) {
            int rank = 0;
            for (int other = 0; other < window; other++) rank += ranked[other] > ranked[i];
            if (rank < max_peaks) best[rank] = ranked[i];
        }
        __syncthreads();  // best is complete, and the window has been read
        kept = min(window, max_peaks);
        for (int i = threadIdx.x; i < kept; i += THREADS) ranked[i] = best[i];
    }
    return kept;
}

// Offset within +-1/2 of the top of the parabola through the logarithms at at-1, at, at+1 of a line
// of heat whose pixels are stride apart. In float64, as on the CPU; a GPU's logarithm may differ
// from the CPU's in the last bit.
__device__ __forceinline__ float log_parabola(const float* line, int stride, int at, int length)
{
    if (at == 0 || at == length - 1) return 0.0f;
    const double middle = line[at * stride];
    const double left = line[(at - 1) * stride] / middle, right = line[(at + 1) * stride] / middle;
    const double before = log(left < 0.01 ? 0.01 : left), after = log(right < 0.01 ? 0.01 : right);
    const double curve = before + after;
    return curve < 0.0 ? (float)(0.5 * (before - after) / curve) : 0.0f;
}

// A pixel of heat's own grid in network-input pixels, and the parabola's top as the offset.
__device__ __forceinline__ void place_half(const float* plane, int height, int width, int x, int y,
                                           float step_x, float step_y, float* xy, float* offset)
{
    const float top_x = log_parabola(plane + (size_t)y * width, 1, x, width);
    const float top_y = log_parabola(plane + x, width, y, height);
    xy[0] = (float)((x + 0.5) * (double)step_x - 0.5);
    xy[1] = (float)((y + 0.5) * (double)step_y - 0.5);
    offset[0] = top_x * step_x + 0.5f;
    offset[1] = top_y * step_y + 0.5f;
}

// The best M of a map's tile lists: xy, offset (B, K, M, 2), score (B, K, M), tags_out
// (B, K, M, T); unused slots are all zero.
//
//   grid    (B * K)
//   block   (256)
//   shared  10.3 KB
//
// table: from heat to the grid of the search (height_out, width_out), which at half resolution is
// heat's own. tags (B, K, a, b, T) are upsampled by table_inner to (between_height, between_width) and
// by table_outer to the grid of the search. step: network-input pixels per pixel of that grid.
extern "C" __global__ void __launch_bounds__(THREADS)
select_peaks(const Key* __restrict__ keys, const int* __restrict__ counts, int num_tiles,
             int max_peaks, const float* __restrict__ heat, const unsigned int* __restrict__ table,
             int height, int width, int height_out, int width_out, const float* __restrict__ tags,
             const unsigned int* __restrict__ table_inner,
             const unsigned int* __restrict__ table_outer, int tag_height, int tag_width,
             int between_height, int between_width, int numbers, int half_resolution, float step_x,
             float step_y, float* __restrict__ xy, float* __restrict__ score,
             float* __restrict__ tags_out, float* __restrict__ offset)
{
    __shared__ Key ranked[MAX_PEAKS + WINDOW];
    __shared__ Key best[MAX_PEAKS];
    __shared__ int warp_sums[THREADS / 32];
    const size_t map = blockIdx.x, slots = map * max_peaks;
    const int kept = merge_lists(keys + slots * num_tiles, counts + map * num_tiles, num_tiles,
                                 max_peaks, ranked, best, warp_sums);

    const Grid grid = grid_of(table, height, width, height_out, width_out);
    const Grid inner = grid_of(table_inner, tag_height, tag_width, between_height, between_width);
    const Grid outer = grid_of(table_outer, between_height, between_width, height_out, width_out);
    const float* plane = heat + map * height * width;
    const float* map_tags = tags + map * tag_height * tag_width * numbers;
    // T + 1 tasks for every slot: its place, then its tag numbers; slots are next to each other.
    for (int i = threadIdx.x; i < max_peaks * (numbers + 1); i += THREADS) {
        const int m = i % max_peaks, number = i / max_peaks - 1;
        const size_t slot = slots + m;
        const unsigned int index = m < kept ? 0xffffffffu - (unsigned int)best[m] : 0;
        const int x = index % width_out, y = index / width_out;
        if (number >= 0) {
            tags_out[slot * numbers + number] =
                m < kept ? upsampled_tag(map_tags, numbers, inner, outer, x, y, number) : 0.0f;
        } else if (m >= kept) {
            score[slot] = 0.0f;
            xy[2 * slot] = xy[2 * slot + 1] = offset[2 * slot] = offset[2 * slot + 1] = 0.0f;
        } else {
            score[slot] = __uint_as_float((unsigned int)(best[m] >> 32));
            if (half_resolution) {
                place_half(plane, height, width, x, y, step_x, step_y, xy + 2 * slot,
                           offset + 2 * slot);
            } else {
                const float2 quarter = quarter_offset(plane, grid, x, y);
                xy[2 * slot] = x;
                xy[2 * slot + 1] = y;
                offset[2 * slot] = quarter.x;
                offset[2 * slot + 1] = quarter.y;
            }
        }
    }
}
