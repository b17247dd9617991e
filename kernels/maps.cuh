// Reading maps that are smaller than the network input: the device functions that peaks.cu and
// grouping.cu share. Every float32 operation is the one of kernels/sampling.py, in its order; nothing
// is fused (the compile options say so), so the results are equal, not close.
//
// A grid's table is one array of unsigned int, made by kernels/gpu_peaks.py: the axis of the rows,
// then that of the columns. An axis that upsamples n_in pixels to n_out holds
//
//     first (n_out) | second (n_out) | weight (n_out, bits of a float) | nearest_from (n_in + 1)
//
// with the meaning of kernels.sampling.Axis.

struct Axis {
    const unsigned int* first;
    const unsigned int* second;
    const float* weight;
    const unsigned int* nearest_from;
    int length_in;
    int length_out;
};

struct Grid {
    Axis rows;
    Axis columns;
};

__device__ __forceinline__ Axis axis_of(const unsigned int* table, int length_in, int length_out)
{
    Axis axis;
    axis.first = table;
    axis.second = table + length_out;
    axis.weight = (const float*)(table + 2 * length_out);
    axis.nearest_from = table + 3 * length_out;
    axis.length_in = length_in;
    axis.length_out = length_out;
    return axis;
}

__device__ __forceinline__ int axis_table_length(int length_in, int length_out)
{
    return 3 * length_out + length_in + 1;
}

// The grid that upsamples maps of height_in x width_in to height_out x width_out, over its table.
__device__ __forceinline__ Grid grid_of(const unsigned int* table, int height_in, int width_in,
                                        int height_out, int width_out)
{
    Grid grid;
    grid.rows = axis_of(table, height_in, height_out);
    grid.columns = axis_of(table + axis_table_length(height_in, height_out), width_in, width_out);
    return grid;
}

// One number of plane (h, w, numbers), upsampled by grid, at (x, y): along x first, then along y.
// plane points at that number of the first pixel.
__device__ __forceinline__ float upsampled_number(const float* __restrict__ plane, int numbers,
                                               const Grid& grid, int x, int y)
{
    const int row_length = grid.columns.length_in * numbers;
    const float* above = plane + (size_t)grid.rows.first[y] * row_length;
    const float* below = plane + (size_t)grid.rows.second[y] * row_length;
    const unsigned int x0 = grid.columns.first[x] * numbers, x1 = grid.columns.second[x] * numbers;
    const float wx = grid.columns.weight[x], wy = grid.rows.weight[y];
    const float upper = (1.0f - wx) * above[x0] + wx * above[x1];
    const float lower = (1.0f - wx) * below[x0] + wx * below[x1];
    return (1.0f - wy) * upper + wy * lower;
}

// kernels.sampling.upsampled_value: plane (h, w) upsampled by grid, at (x, y).
__device__ __forceinline__ float upsampled_value(const float* __restrict__ plane, const Grid& grid,
                                              int x, int y)
{
    return upsampled_number(plane, 1, grid, x, y);
}

// kernels.sampling.upsampled_tag: number t of tags (a, b, numbers), upsampled by inner and then by outer.
__device__ __forceinline__ float upsampled_tag(const float* __restrict__ tags, int numbers,
                                            const Grid& inner, const Grid& outer, int x, int y,
                                            int t)
{
    const float* plane = tags + t;
    const int y0 = outer.rows.first[y], y1 = outer.rows.second[y];
    const int x0 = outer.columns.first[x], x1 = outer.columns.second[x];
    const float wx = outer.columns.weight[x], wy = outer.rows.weight[y];
    const float upper_left = upsampled_number(plane, numbers, inner, x0, y0);
    const float upper_right = upsampled_number(plane, numbers, inner, x1, y0);
    const float lower_left = upsampled_number(plane, numbers, inner, x0, y1);
    const float lower_right = upsampled_number(plane, numbers, inner, x1, y1);
    const float upper = (1.0f - wx) * upper_left + wx * upper_right;
    const float lower = (1.0f - wx) * lower_left + wx * lower_right;
    return (1.0f - wy) * upper + wy * lower;
}

// kernels.sampling.quarter_offset: a half, and a quarter towards the higher neighbour, along x and y.
// Equal neighbours count as lower on the far side.
__device__ __forceinline__ float2 quarter_offset(const float* __restrict__ plane, const Grid& grid,
                                                 int x, int y)
{
    const int right = min(x + 1, grid.columns.length_out - 1), left = max(x - 1, 0);
    const int below = min(y + 1, grid.rows.length_out - 1), above = max(y - 1, 0);
    const bool to_right =
        upsampled_value(plane, grid, right, y) > upsampled_value(plane, grid, left, y);
    const bool to_below =
        upsampled_value(plane, grid, x, below) > upsampled_value(plane, grid, x, above);
    return make_float2(to_right ? 0.75f : 0.25f, to_below ? 0.75f : 0.25f);
}
