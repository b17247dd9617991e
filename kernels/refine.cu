// Filling the keypoints that people miss, on the GPU: the CUDA twin of
// kernels/refine.py.
//
//     measure_tags  grid (tiles / 128, K, B), block 128      range of the upsampled tags in each tile
//     refine        grid (people at a time, K, B), block 128    best place for each missing keypoint
//
// The merit of a pixel is its heat minus the rounded L2 distance between its tag and the person's
// mean tag; of equal merits the first in row-major order wins. No pixel of a tile has more merit
// than the tile's ceiling minus the least rounded distance that its range of tags allows. The block
// searches the tile of the greatest bound together; then each of its warps searches those of its
// own tiles that can still win or tie. A place is one integer (merit, then the earlier pixel), so
// the best place is a maximum, whatever the order of the search.
//
// The ranges are a launch of their own because all people share them.

#include "maps.cuh"
#include "people.cuh"

constexpr unsigned int ALL_LANES = 0xffffffffu;
constexpr int REFINE_THREADS = 128, REFINE_WARPS = REFINE_THREADS / 32;

// kernels.sampling.CEILING_SLACK twice, for tags are upsampled twice.
constexpr float TAG_SLACK = 2.0f / 1048576.0f;

typedef unsigned long long Place;

// Greater means more merit, or as much and earlier; 0, less than any other, where merit is NaN.
__device__ __forceinline__ Place place_of(float merit, unsigned int position)
{
    if (merit != merit) return 0;
    const unsigned int bits = __float_as_uint(merit + 0.0f);  // -0 and 0 are equal merits
    const unsigned int ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (Place)ordered << 32 | (unsigned int)~position;
}

__device__ __forceinline__ unsigned int position_of(Place place)
{
    return ~(unsigned int)place;
}

__device__ Place warp_best(Place place)
{
    for (int offset = 16; offset > 0; offset /= 2)
        place = max(place, __shfl_xor_sync(ALL_LANES, place, offset));
    return place;
}

// The greatest of the block, for all its threads; shared holds one for each warp.
__device__ Place block_best(Place place, Place* shared)
{
    place = warp_best(place);
    __syncthreads();  // the last result has been read
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = place;
    __syncthreads();
    for (int warp = 0; warp < REFINE_WARPS; warp++) place = max(place, shared[warp]);
    return place;
}

// Of one keypoint of one image.
struct Maps {
    const float* heat;     // (h, w)
    const float* tags;     // (a, b, T)
    const float* ceiling;  // (I, J)
    const float* lowest;   // (T, I, J)
    const float* highest;  // (T, I, J)
    Grid heat_grid, inner, outer;
    int tile_side, tile_rows, tile_columns, num_numbers;
};

// First and last pixel, on one axis of the tag map, that a tile depends on.
__device__ int2 reach(const Axis& heat, const Axis& inner, const Axis& outer, int first, int side)
{
    const int start = heat.nearest_from[first];
    const int end = (int)heat.nearest_from[min(first + side, heat.length_in)] - 1;
    int2 pixels;
    pixels.x = inner.first[outer.first[start]];
    pixels.y = inner.second[outer.second[end]];
    return pixels;
}

// lowest and highest: every upsampled tag number t of the tile's pixels lies between them. A tile with
// a tag that is NaN, or with infinite ones only, gets the whole line: it can rule out nothing.
__device__ void measure_tile(const Maps& maps, int tile, int t, float* lowest, float* highest)
{
    const int side = maps.tile_side, columns = maps.inner.columns.length_in;
    const int2 rows = reach(maps.heat_grid.rows, maps.inner.rows, maps.outer.rows,
                            side * (tile / maps.tile_columns), side);
    const int2 across = reach(maps.heat_grid.columns, maps.inner.columns, maps.outer.columns,
                              side * (tile % maps.tile_columns), side);
    const float infinity = __int_as_float(0x7f800000);
    float low = infinity, high = -infinity;
    bool broken = false;
    for (int y = rows.x; y <= rows.y; y++) {
        for (int x = across.x; x <= across.y; x++) {
            const float tag = maps.tags[((size_t)y * columns + x) * maps.num_numbers + t];
            low = min(low, tag), high = max(high, tag);
            broken |= tag != tag;
        }
    }
    const float spare = max(fabsf(low), fabsf(high)) * TAG_SLACK;
    low -= spare, high += spare;
    broken |= !(low <= high);
    *lowest = broken ? -infinity : low;
    *highest = broken ? infinity : high;
}

// No pixel of the tile has a smaller rounded distance to tag (T,): the operations of
// rounded_distance in their order, each of which is monotone. NaN where tag is.
__device__ float least_distance(const Maps& maps, int tile, const float* tag)
{
    const int tiles = maps.tile_rows * maps.tile_columns;
    float total = 0.0f;
    for (int t = 0; t < maps.num_numbers; t++) {
        const float below = maps.lowest[t * tiles + tile] - tag[t];
        const float above = tag[t] - maps.highest[t * tiles + tile];
        const float farther = above > below ? above : below;  // keeps a NaN, which max would drop
        const float gap = farther < 0.0f ? 0.0f : farther;
        total += gap * gap;
    }
    return rintf(sqrtf(total));
}

__device__ float rounded_distance(const Maps& maps, int x, int y, const float* tag)
{
    float total = 0.0f;
    for (int t = 0; t < maps.num_numbers; t++) {
        const float upsampled =
            upsampled_tag(maps.tags, maps.num_numbers, maps.inner, maps.outer, x, y, t);
        const float difference = upsampled - tag[t];
        total += difference * difference;
    }
    return rintf(sqrtf(total));
}

__device__ unsigned int first_position(const Maps& maps, int tile)
{
    const int row = maps.tile_side * (tile / maps.tile_columns);
    const int column = maps.tile_side * (tile % maps.tile_columns);
    return maps.heat_grid.rows.nearest_from[row] * maps.heat_grid.columns.length_out +
           maps.heat_grid.columns.nearest_from[column];
}

// The better of best and the best of every count-th pixel of a tile, from its pixel start on.
__device__ Place search_tile(const Maps& maps, int tile, const float* tag, int start, int count,
                             Place best)
{
    const Axis &rows = maps.heat_grid.rows, &columns = maps.heat_grid.columns;
    const int row = maps.tile_side * (tile / maps.tile_columns);
    const int column = maps.tile_side * (tile % maps.tile_columns);
    const int top = rows.nearest_from[row], left = columns.nearest_from[column];
    const int bottom = rows.nearest_from[min(row + maps.tile_side, rows.length_in)];
    const int right = columns.nearest_from[min(column + maps.tile_side, columns.length_in)];
    const float least = least_distance(maps, tile, tag);
    for (int i = start; i < (bottom - top) * (right - left); i += count) {
        const int y = top + i / (right - left), x = left + i % (right - left);
        const unsigned int position = (unsigned int)y * columns.length_out + x;
        const float heat = upsampled_value(maps.heat, maps.heat_grid, x, y);
        if (place_of(heat - least, position) <= best) continue;  // most do not need their tag
        best = max(best, place_of(heat - rounded_distance(maps, x, y, tag), position));
    }
    return best;
}

// The place of greatest merit for a person of mean tag (T,); the first pixel where there is none.
__device__ Place search(const Maps& maps, const float* tag, Place* shared)
{
    const int tiles = maps.tile_rows * maps.tile_columns, thread = threadIdx.x;
    const int lane = thread % 32, warp = thread / 32;
    Place bound = 0;
    for (int tile = thread; tile < tiles; tile += REFINE_THREADS)
        bound = max(bound, place_of(maps.ceiling[tile] - least_distance(maps, tile, tag), tile));
    bound = block_best(bound, shared);
    Place best = place_of(-__int_as_float(0x7f800000), 0);
    const int promising = bound != 0 ? (int)position_of(bound) : -1;
    if (promising >= 0) best = search_tile(maps, promising, tag, thread, REFINE_THREADS, best);
    best = block_best(best, shared);
    for (int first = 0; first < tiles; first += REFINE_THREADS) {
        const int own = first + lane * REFINE_WARPS + warp;  // neighbours go to different warps
        bound = 0;
        if (own < tiles && own != promising)
            bound = place_of(maps.ceiling[own] - least_distance(maps, own, tag),
                             first_position(maps, own));
        while (true) {
            const unsigned int open = __ballot_sync(ALL_LANES, bound > best);
            if (open == 0) break;
            const int chosen = __ffs((int)open) - 1;
            const int tile = first + chosen * REFINE_WARPS + warp;
            best = warp_best(search_tile(maps, tile, tag, lane, 32, best));
            if (lane == chosen) bound = 0;
        }
    }
    return block_best(best, shared);
}

// The maps of this block's image (z) and keypoint (y). sizes (10,) int: h, w | a, b | size of the
// tags between their two grids | H, W | side of a tile | T. Tables as maps.cuh says.
__device__ Maps maps_of_block(const float* heat, const float* tags, const float* ceiling,
                              const float* lowest, const float* highest,
                              const unsigned int* heat_table, const unsigned int* inner_table,
                              const unsigned int* outer_table, const int* sizes)
{
    const size_t map = (size_t)blockIdx.z * gridDim.y + blockIdx.y;
    Maps maps;
    maps.tile_side = sizes[8];
    maps.num_numbers = sizes[9];
    maps.heat_grid = grid_of(heat_table, sizes[0], sizes[1], sizes[6], sizes[7]);
    maps.inner = grid_of(inner_table, sizes[2], sizes[3], sizes[4], sizes[5]);
    maps.outer = grid_of(outer_table, sizes[4], sizes[5], sizes[6], sizes[7]);
    maps.tile_rows = (sizes[0] + maps.tile_side - 1) / maps.tile_side;
    maps.tile_columns = (sizes[1] + maps.tile_side - 1) / maps.tile_side;
    const size_t tiles = (size_t)maps.tile_rows * maps.tile_columns;
    maps.heat = heat + map * sizes[0] * sizes[1];
    maps.tags = tags + map * sizes[2] * sizes[3] * maps.num_numbers;
    maps.ceiling = ceiling + map * tiles;
    maps.lowest = lowest + map * tiles * maps.num_numbers;
    maps.highest = highest + map * tiles * maps.num_numbers;
    return maps;
}

// One thread for each tile. No shared memory.
extern "C" __global__ void __launch_bounds__(128)
measure_tags(const float* __restrict__ tags,  // (B, K, a, b, T)
             const unsigned int* __restrict__ heat_table,
             const unsigned int* __restrict__ inner_table,
             const unsigned int* __restrict__ outer_table, const int* __restrict__ sizes,
             float* __restrict__ lowest,   // (B, K, T, I, J)
             float* __restrict__ highest)  // (B, K, T, I, J)
{
    const Maps maps = maps_of_block(tags, tags, tags, lowest, highest, heat_table, inner_table,
                                    outer_table, sizes);
    const int tiles = maps.tile_rows * maps.tile_columns;
    const int tile = blockIdx.x * REFINE_THREADS + threadIdx.x;
    const size_t own = (maps.lowest - lowest) + tile;
    for (int t = 0; tile < tiles && t < maps.num_numbers; t++)
        measure_tile(maps, tile, t, lowest + own + t * tiles, highest + own + t * tiles);
}

// A block looks for keypoint blockIdx.y of people blockIdx.x, blockIdx.x + gridDim.x, ... of image
// blockIdx.z. Static shared memory: 32 bytes. Four blocks a multiprocessor, which gives a thread up
// to 128 registers: left to itself, the compiler takes 72 for sm_90 and spills.
extern "C" __global__ void __launch_bounds__(128, 4)
refine(const float* __restrict__ heat,     // (B, K, h, w)
       const float* __restrict__ tags,     // (B, K, a, b, T)
       const float* __restrict__ ceiling,  // (B, K, I, J)
       const float* __restrict__ lowest,   // (B, K, T, I, J)
       const float* __restrict__ highest,  // (B, K, T, I, J)
       const unsigned int* __restrict__ heat_table, const unsigned int* __restrict__ inner_table,
       const unsigned int* __restrict__ outer_table, const int* __restrict__ sizes,
       const int* __restrict__ slots,      // (B, C, K)
       int capacity,                       // C
       float step_x, float step_y,         // network-input pixels per pixel of the search
       float* people)                      // (1 + C, B, record)
{
    __shared__ Place shared[REFINE_WARPS];
    const Maps maps = maps_of_block(heat, tags, ceiling, lowest, highest, heat_table, inner_table,
                                    outer_table, sizes);
    const int image = blockIdx.z, num_images = gridDim.z, k = blockIdx.y, num_keypoints = gridDim.y;
    const int full_width = maps.heat_grid.columns.length_out;
    const Person header =
        person_at(people, 0, image, num_images, num_keypoints, maps.num_numbers);
    const int num_people = __float_as_int(header.keypoints[0]);
    for (int p = blockIdx.x; p < num_people; p += gridDim.x) {
        if (slots[((size_t)image * capacity + p) * num_keypoints + k] >= 0) continue;
        const Person person =
            person_at(people, 1 + p, image, num_images, num_keypoints, maps.num_numbers);
        const unsigned int position = position_of(search(maps, person.tag, shared));
        const int x = position % full_width, y = position / full_width;
        const float found = upsampled_value(maps.heat, maps.heat_grid, x, y);
        if (threadIdx.x == 0 && found > 0.0f) {
            const float2 offset = quarter_offset(maps.heat, maps.heat_grid, x, y);
            person.keypoints[3 * k] = ((float)x + offset.x) * step_x;
            person.keypoints[3 * k + 1] = ((float)y + offset.y) * step_y;
            person.keypoints[3 * k + 2] = found;
            person.filled[k] = 1;
        }
    }
}
