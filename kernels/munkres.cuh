// The classical Munkres algorithm by one warp (its first step by any): exactly the choices of kernels.munkres.munkres.
//
// The published code scans for zeros one by one, and the order of its scans decides between
// assignments of equal cost. Here every row of costs has a row of bits that says where it is zero.
// Bits change only when costs do, so a scan is a few bit operations: lane r looks at row r, a vote
// finds the first row, and the highest bit below the start (else the highest of all) is the column
// that going backwards from the start meets first. All lanes carry the same covers and the same
// place in registers; only lane 0 writes stars and primes.
//
// WORDS words of 32 bits hold a row or a column: 1 for up to 32 rows, 8 for up to 256.

constexpr unsigned int FULL_WARP = 0xffffffffu;
constexpr double LARGEST_FINITE_DOUBLE = 1.7976931348623157e308;

__device__ double warp_least(double value)
{
    for (int offset = 16; offset > 0; offset /= 2)
        value = min(value, __shfl_xor_sync(FULL_WARP, value, offset));
    return value;
}

template <int WORDS>
struct Bits {
    unsigned int word[WORDS];

    __device__ void clear()
    {
        for (int w = 0; w < WORDS; w++) word[w] = 0;
    }
    __device__ bool has(int i) const
    {
        bool found = false;  // a loop with constant indices keeps the words in registers
        for (int w = 0; w < WORDS; w++)
            if (w == i >> 5) found = word[w] >> (i & 31) & 1u;
        return found;
    }
    __device__ void set(int i, bool value)
    {
        const unsigned int bit = 1u << (i & 31);
        for (int w = 0; w < WORDS; w++)
            if (w == i >> 5) word[w] = value ? word[w] | bit : word[w] & ~bit;
    }
    __device__ int count() const
    {
        int total = 0;
        for (int w = 0; w < WORDS; w++) total += __popc(word[w]);
        return total;
    }
    // The lowest bit from start on, or -1.
    __device__ int first_from(int start) const
    {
        int first = -1;
        for (int w = WORDS - 1; w >= 0; w--) {
            const int skip = min(max(start - 32 * w, 0), 32);
            const unsigned int left = skip < 32 ? word[w] & (FULL_WARP << skip) : 0u;
            if (left != 0) first = 32 * w + __ffs((int)left) - 1;
        }
        return first;
    }
    // The highest bit below end, or -1.
    __device__ int last_before(int end) const
    {
        int last = -1;
        for (int w = 0; w < WORDS; w++) {
            const int keep = min(max(end - 32 * w, 0), 32);
            const unsigned int left = keep > 0 ? word[w] & (FULL_WARP >> (32 - keep)) : 0u;
            if (left != 0) last = 32 * w + 31 - __clz((int)left);
        }
        return last;
    }
};

// Where one problem lives; all of it is seen by the whole warp.
struct Assignment {
    double* cost;         // (side, pitch)
    unsigned int* zeros;  // (side, WORDS): bit c of row r says that cost[r][c] == 0.0
    int* star_of_row;     // (side,): the result, the column of every row
    int* star_of_column;  // (side,)
    int* prime_of_row;    // (side,)
    int pitch;
    int side;
};

// The first step: subtract a row's least cost from it and note its zeros. One warp does a row.
template <int WORDS>
__device__ void reduce_row(const Assignment& problem, int row)
{
    const int lane = threadIdx.x & 31;
    double* cost = problem.cost + (size_t)row * problem.pitch;
    double least = LARGEST_FINITE_DOUBLE;
    for (int column = lane; column < problem.side; column += 32) least = min(least, cost[column]);
    least = warp_least(least);
    for (int w = 0; w < WORDS; w++) {
        const int column = 32 * w + lane;
        if (column < problem.side) cost[column] -= least;
        const bool zero = column < problem.side && cost[column] == 0.0;
        const unsigned int zeros = __ballot_sync(FULL_WARP, zero);
        if (lane == 0) problem.zeros[row * WORDS + w] = zeros;
    }
}

// Star the first zero of every row whose column has no star yet; returns the starred columns.
template <int WORDS>
__device__ Bits<WORDS> star_first_zeros(const Assignment& problem, int lane)
{
    Bits<WORDS> starred;
    starred.clear();
    for (int row = 0; row < problem.side; row++) {
        Bits<WORDS> free;
        for (int w = 0; w < WORDS; w++)
            free.word[w] = problem.zeros[row * WORDS + w] & ~starred.word[w];
        const int column = free.first_from(0);
        if (column >= 0) starred.set(column, true);
        if (lane == 0) {
            problem.star_of_row[row] = column;
            if (column >= 0) problem.star_of_column[column] = row;
        }
    }
    return starred;
}

// An uncovered zero: moves (row, column) from where the scan starts to it, or returns false.
template <int WORDS>
__device__ bool find_zero(const Assignment& problem, const Bits<WORDS>& rows_covered,
                          const Bits<WORDS>& columns_covered, int lane, int& row, int& column)
{
    Bits<WORDS> with_zero;
    for (int w = 0; w < WORDS; w++) {
        const int own = 32 * w + lane;
        unsigned int open = 0;
        if (own < problem.side && !(rows_covered.word[w] >> lane & 1u))
            for (int v = 0; v < WORDS; v++)
                open |= problem.zeros[own * WORDS + v] & ~columns_covered.word[v];
        with_zero.word[w] = __ballot_sync(FULL_WARP, open != 0);
    }
    const int later = with_zero.first_from(row);
    row = later >= 0 ? later : with_zero.first_from(0);
    if (row < 0) return false;
    Bits<WORDS> zeros;
    for (int w = 0; w < WORDS; w++)
        zeros.word[w] = problem.zeros[row * WORDS + w] & ~columns_covered.word[w];
    const int before = zeros.last_before(column);
    column = before >= 0 ? before : zeros.last_before(problem.side);
    return true;
}

// Add the least uncovered cost to covered rows, then subtract it from uncovered columns.
template <int WORDS>
__device__ void make_zero(const Assignment& problem, const Bits<WORDS>& rows_covered,
                          const Bits<WORDS>& columns_covered, int lane)
{
    double least = LARGEST_FINITE_DOUBLE;
    for (int row = 0; row < problem.side; row++) {
        if (rows_covered.has(row)) continue;
        for (int w = 0; w < WORDS; w++) {
            const int column = 32 * w + lane;
            if (column < problem.side && !(columns_covered.word[w] >> lane & 1u))
                least = min(least, problem.cost[(size_t)row * problem.pitch + column]);
        }
    }
    least = warp_least(least);
    __syncwarp();  // every lane has read the zeros; shuffles order no memory
    for (int row = 0; row < problem.side; row++) {
        const bool row_covered = rows_covered.has(row);
        for (int w = 0; w < WORDS; w++) {
            const int column = 32 * w + lane;
            bool zero = false;
            if (column < problem.side) {
                double* cost = problem.cost + (size_t)row * problem.pitch + column;
                if (row_covered) *cost += least;
                if (!(columns_covered.word[w] >> lane & 1u)) *cost -= least;
                zero = *cost == 0.0;
            }
            const unsigned int zeros = __ballot_sync(FULL_WARP, zero);
            if (lane == 0) problem.zeros[row * WORDS + w] = zeros;
        }
    }
    __syncwarp();
}

// From a primed zero without a star in its row, swap primes and stars along their path. Returns
// the column where the path ends, which had no star before. One lane does it.
__device__ int augment(const Assignment& problem, int row)
{
    int column = -1;
    while (row >= 0) {
        column = problem.prime_of_row[row];
        const int next_row = problem.star_of_column[column];
        problem.star_of_row[row] = column;
        problem.star_of_column[column] = row;
        row = next_row;
    }
    return column;
}

// Fill star_of_row, once every row is reduced; cost is overwritten. All lanes of one warp call it.
// Old primes need not be erased: a path only visits rows that were primed since the last one.
template <int WORDS>
__device__ void munkres(const Assignment& problem)
{
    const int lane = threadIdx.x & 31;
    for (int column = lane; column < problem.side; column += 32)
        problem.star_of_column[column] = -1;
    __syncwarp();
    Bits<WORDS> starred = star_first_zeros<WORDS>(problem, lane);
    __syncwarp();
    while (starred.count() < problem.side) {
        Bits<WORDS> rows_covered, columns_covered = starred;
        rows_covered.clear();
        int row = 0, column = 0, star = 0;
        while (star >= 0) {
            if (!find_zero(problem, rows_covered, columns_covered, lane, row, column)) {
                make_zero(problem, rows_covered, columns_covered, lane);
                row = 0, column = 0;
                continue;
            }
            if (lane == 0) problem.prime_of_row[row] = column;
            star = problem.star_of_row[row];
            if (star >= 0) {
                rows_covered.set(row, true);
                columns_covered.set(star, false);
                column = star;
            }
        }
        __syncwarp();  // every lane has read star_of_row
        int end = 0;
        if (lane == 0) end = augment(problem, row);
        starred.set(__shfl_sync(FULL_WARP, end, 0), true);
        __syncwarp();
    }
}
