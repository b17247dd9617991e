// Peaks -> people on the GPU: the CUDA twin of kernels/grouping.py.
//
//     group    grid (B), block 256    peaks -> slots (P, K) -> keypoints, scores, mean tags
//
// One launch for a batch, one block for an image. Matching is a chain of steps, keypoint by
// keypoint. What is wide in a step, up to 30 x 30 costs with a square root each, is spread over the
// block; the assignment itself is one warp's, whose votes settle it in few instructions where a
// wider block would wait at barriers.
//
// Every float32 and float64 operation is the one of kernels/grouping.py in its order. No result
// depends on timing: lanes write to places of their own, and what is reduced is a minimum.

#include "munkres.cuh"
#include "people.cuh"

constexpr int GROUP_THREADS = 256;
constexpr double NOBODY = 1e10;  // kernels.grouping._NOBODY

// ---- matching -----------------------------------------------------------------------------------

struct Peaks {  // of one image
    const float* xy;      // (K, M, 2)
    const float* score;   // (K, M)
    const float* tags;    // (K, M, T)
    const float* offset;  // (K, M, 2)
    int num_keypoints;
    int num_peaks;
    int num_numbers;
};

struct Crowd {        // people while they are being matched; as kernels.grouping._Crowd
    int* slots;       // (C, K): which peak is the person's keypoint, -1 where none
    float* key;       // (C,): first tag number of the peak that began the person
    float* tags;      // (K, T, C): tags of the peaks since then, in the order they came
    int* num_tags;    // (C,): how many of them
    int capacity;     // C
};

// Sum of up to 128 numbers that lie stride apart, as NumPy adds: from eight on in eight strands.
__device__ float sum_in_numpy_order(const float* values, int stride, int n)
{
    const int strands = n - n % 8;
    float total = 0.0f;
    if (strands > 0) {
        float s[8];
        for (int j = 0; j < 8; j++) s[j] = values[j * stride];
#pragma unroll 1
        for (int i = 8; i < strands; i += 8)
            for (int j = 0; j < 8; j++) s[j] += values[(i + j) * stride];
        total = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
    }
#pragma unroll 1
    for (int i = strands; i < n; i++) total += values[i * stride];
    return total;
}

// mean[t * step] = mean tag number t of a person in the crowd.
__device__ void mean_tag(const Crowd& crowd, int person, int num_numbers, float* mean, int step)
{
    const int count = crowd.num_tags[person], stride = num_numbers * crowd.capacity;
#pragma unroll 1
    for (int t = 0; t < num_numbers; t++) {
        const float* values = crowd.tags + (size_t)t * crowd.capacity + person;
        float total = 0.0f;
        if (num_numbers == 1)
            total = sum_in_numpy_order(values, stride, count);
        else
            for (int i = 0; i < count; i++) total += values[i * stride];
        mean[t * step] = total / (float)count;
    }
}

// L2 distance of a peak's tag (T,) to the mean tag of a person; mean is (T, max_people).
__device__ double tag_distance(const float* tag, const float* mean, int person, int num_numbers,
                               int max_people)
{
    double total = 0.0;
#pragma unroll 1
    for (int t = 0; t < num_numbers; t++) {
        const double difference = (double)tag[t] - (double)mean[t * max_people + person];
        total += difference * difference;
    }
    return sqrt(total);
}

// How many of the sorted scores (M,) come before the first that is not positive; for a whole warp.
__device__ int count_peaks(const float* score, int num_peaks)
{
    const int lane = threadIdx.x & 31;
    for (int first = 0; first < num_peaks; first += 32) {
        const int m = first + lane;
        const bool ends = m >= num_peaks || !(score[m] > 0.0f);
        const unsigned int unused = __ballot_sync(FULL_WARP, ends);
        if (unused != 0) return first + __ffs((int)unused) - 1;
    }
    return num_peaks;
}

// Cost of giving peak m of keypoint k to a person, as kernels.grouping._assign. Only n peaks and p
// people exist; the matrix is square.
__device__ double cost_of(const Peaks& peaks, int k, int m, int person, int n, int p,
                          const float* mean, int max_people)
{
    if (m >= n) return 0.0;
    if (person >= p) return NOBODY;
    const int peak = k * peaks.num_peaks + m;
    const float* tag = peaks.tags + (size_t)peak * peaks.num_numbers;
    const double distance = tag_distance(tag, mean, person, peaks.num_numbers, max_people);
    if (!(distance <= LARGEST_FINITE_DOUBLE)) return NOBODY;
    return rint(distance) * 100.0 - (double)peaks.score[peak];
}

// The rows of the problem for one keypoint, reduced; a warp for each row.
template <int WORDS>
__device__ void fill_problem(const Peaks& peaks, int k, int n, int p, const float* mean,
                             int max_people, const Assignment& problem)
{
    const int lane = threadIdx.x & 31;
    for (int m = threadIdx.x / 32; m < problem.side; m += GROUP_THREADS / 32) {
        double* cost = problem.cost + (size_t)m * problem.pitch;
        for (int person = lane; person < problem.side; person += 32)
            cost[person] = cost_of(peaks, k, m, person, n, p, mean, max_people);
        reduce_row<WORDS>(problem, m);
    }
}

// Peak m of keypoint k begins a person, or begins an old one of equal key anew: that one keeps its
// other keypoints but forgets their tags. Returns the number of people. For a whole warp.
__device__ int begin_person(const Peaks& peaks, int k, int m, const Crowd& crowd, int num_people)
{
    const int lane = threadIdx.x & 31;
    const float* tag = peaks.tags + ((size_t)k * peaks.num_peaks + m) * peaks.num_numbers;
    const float key = tag[0];
    int person = num_people;
    for (int first = 0; first < num_people && person == num_people; first += 32) {
        const int other = first + lane;
        const bool equal = other < num_people && crowd.key[other] == key;
        const unsigned int found = __ballot_sync(FULL_WARP, equal);
        if (found != 0) person = first + __ffs((int)found) - 1;
    }
    __syncwarp();  // every lane has read the keys; a vote orders no memory
    for (int i = lane; i < peaks.num_keypoints; i += 32)
        if (i == k || person == num_people)
            crowd.slots[person * peaks.num_keypoints + i] = i == k ? m : -1;
    for (int t = lane; t < peaks.num_numbers; t += 32)
        crowd.tags[(size_t)t * crowd.capacity + person] = tag[t];
    if (lane == 0) {
        crowd.key[person] = key;
        crowd.num_tags[person] = 1;
    }
    return max(num_people, person + 1);
}

// The peaks of keypoint k in order: whoever is assigned a person nearer than tag_threshold joins
// it, any other peak begins one. Between two that begin, peaks join side by side, for no two of
// them are assigned the same person. Returns the number of people. For a whole warp.
__device__ int hand_out(const Peaks& peaks, int k, int n, int p, const int* assigned,
                        const float* mean, int max_people, double tag_threshold,
                        const Crowd& crowd, int num_people)
{
    const int lane = threadIdx.x & 31;
    for (int first = 0; first < n; first += 32) {
        const int m = first + lane;
        const int person = m < n && p > 0 ? assigned[m] : p;
        const float* tag = peaks.tags + ((size_t)k * peaks.num_peaks + m) * peaks.num_numbers;
        const bool joins = person < p && tag_distance(tag, mean, person, peaks.num_numbers,
                                                      max_people) < tag_threshold;
        unsigned int begins = __ballot_sync(FULL_WARP, m < n && !joins);
        for (int from = 0; from < 32;) {
            const int until = begins != 0 ? __ffs((int)begins) - 1 : 32;
            if (joins && from <= lane && lane < until) {
                const int i = crowd.num_tags[person]++;
                crowd.slots[person * peaks.num_keypoints + k] = m;
                for (int t = 0; t < peaks.num_numbers; t++)
                    crowd.tags[((size_t)i * peaks.num_numbers + t) * crowd.capacity + person] =
                        tag[t];
            }
            __syncwarp();
            if (until < 32) {
                num_people = begin_person(peaks, k, first + until, crowd, num_people);
                begins &= begins - 1;
            }
            __syncwarp();
            from = until + 1;
        }
    }
    return num_people;
}

// Hand out all peaks, keypoint by keypoint; the number of people, with their slots, is left in
// num_people.
template <int WORDS>
__device__ void match(const Peaks& peaks, const int* order, double tag_threshold, int max_people,
                      const Crowd& crowd, float* mean, Assignment problem, int* num_people)
{
    for (int i = 0; i < peaks.num_keypoints; i++) {
        const int k = order[i], people = *num_people, p = min(people, max_people);
        const int n = count_peaks(peaks.score + k * peaks.num_peaks, peaks.num_peaks);
        for (int person = threadIdx.x; person < p; person += GROUP_THREADS)
            mean_tag(crowd, person, peaks.num_numbers, mean + person, max_people);
        __syncthreads();  // means are made, num_people is read
        problem.side = n > 0 && p > 0 ? max(n, p) : 0;
        fill_problem<WORDS>(peaks, k, n, p, mean, max_people, problem);
        __syncthreads();  // the problem is filled
        if (threadIdx.x < 32) {
            munkres<WORDS>(problem);
            const int now = hand_out(peaks, k, n, p, problem.star_of_row, mean, max_people,
                                     tag_threshold, crowd, people);
            if (threadIdx.x == 0) *num_people = now;
        }
        __syncthreads();  // peaks are handed out
    }
}

// ---- people -------------------------------------------------------------------------------------

// Keypoint k of a person: its peak with or without the adjustment, or zeros. Nothing is filled yet.
__device__ void place_keypoint(const Peaks& peaks, const Person& person, int k, int m, bool adjust)
{
    float x = 0.0f, y = 0.0f, score = 0.0f;
    if (m >= 0) {
        const int peak = k * peaks.num_peaks + m;
        x = peaks.xy[2 * peak], y = peaks.xy[2 * peak + 1];
        if (adjust) x += peaks.offset[2 * peak], y += peaks.offset[2 * peak + 1];
        score = peaks.score[peak];
    }
    person.keypoints[3 * k] = x;
    person.keypoints[3 * k + 1] = y;
    person.keypoints[3 * k + 2] = score;
    person.filled[k] = 0;
}

// Score and mean tag of a person whose keypoints are placed. The mean is of the tags in the order
// of keypoints, which take the place of those that were in the order of matching.
__device__ void score_and_tag(const Peaks& peaks, const Person& person, const Crowd& crowd, int p)
{
    const float* scores = person.keypoints + 2;
    *person.score = sum_in_numpy_order(scores, 3, peaks.num_keypoints) / (float)peaks.num_keypoints;
    int count = 0;
    for (int k = 0; k < peaks.num_keypoints; k++) {
        const int m = crowd.slots[p * peaks.num_keypoints + k];
        if (m < 0) continue;
        for (int t = 0; t < peaks.num_numbers; t++)
            crowd.tags[((size_t)count * peaks.num_numbers + t) * crowd.capacity + p] =
                peaks.tags[((size_t)k * peaks.num_peaks + m) * peaks.num_numbers + t];
        count++;
    }
    crowd.num_tags[p] = count;
    mean_tag(crowd, p, peaks.num_numbers, person.tag, 1);
}

// A block for each image: matching, then its people's records. Static shared memory: 19 KB. Costs of
// up to 32 x 32 live there, larger ones in cost; without them cost may be anything.
extern "C" __global__ void __launch_bounds__(256)
group(const float* __restrict__ xy, const float* __restrict__ score,
      const float* __restrict__ tags, const float* __restrict__ offset,
      const int* __restrict__ order,  // (K,)
      int num_keypoints, int num_peaks, int num_numbers, int max_people, double tag_threshold,
      int adjust,
      int* slots,       // (B, C, K); this and the next five are work space, written before read
      float* key,       // (B, C)
      float* history,   // (B, K, T, C)
      int* num_tags,    // (B, C)
      float* mean,      // (B, T, max_people)
      double* cost,     // (B, side, side), side = max(num_peaks, max_people) where above 32
      float* people)    // (1 + C, B, record)
{
    __shared__ double small_cost[32 * 32];
    __shared__ unsigned int zeros[256 * 8];
    __shared__ int star_of_row[256], star_of_column[256], prime_of_row[256];
    __shared__ int num_people;
    const int image = blockIdx.x, num_images = gridDim.x, thread = threadIdx.x;
    const int all_peaks = num_keypoints * num_peaks, side = max(num_peaks, max_people);
    const Peaks peaks = {xy + (size_t)image * all_peaks * 2,
                         score + (size_t)image * all_peaks,
                         tags + (size_t)image * all_peaks * num_numbers,
                         offset + (size_t)image * all_peaks * 2,
                         num_keypoints, num_peaks, num_numbers};
    const Crowd crowd = {slots + (size_t)image * all_peaks * num_keypoints,
                         key + (size_t)image * all_peaks,
                         history + (size_t)image * all_peaks * num_keypoints * num_numbers,
                         num_tags + (size_t)image * all_peaks, all_peaks};
    Assignment problem = {small_cost, zeros, star_of_row, star_of_column, prime_of_row, 32, side};
    if (side > 32) {
        problem.pitch = side;
        problem.cost = cost + (size_t)image * side * problem.pitch;
    }
    float* own_mean = mean + (size_t)image * max_people * num_numbers;
    if (thread == 0) num_people = 0;
    __syncthreads();
    if (side <= 32)
        match<1>(peaks, order, tag_threshold, max_people, crowd, own_mean, problem, &num_people);
    else
        match<8>(peaks, order, tag_threshold, max_people, crowd, own_mean, problem, &num_people);
    for (int i = thread; i < num_people * num_keypoints; i += GROUP_THREADS) {
        const Person person = person_at(people, 1 + i / num_keypoints, image, num_images,
                                        num_keypoints, num_numbers);
        place_keypoint(peaks, person, i % num_keypoints, crowd.slots[i], adjust != 0);
    }
    __syncthreads();
    for (int p = thread; p < num_people; p += GROUP_THREADS) {
        const Person person =
            person_at(people, 1 + p, image, num_images, num_keypoints, num_numbers);
        score_and_tag(peaks, person, crowd, p);
    }
    if (thread == 0) {
        const Person header = person_at(people, 0, image, num_images, num_keypoints, num_numbers);
        header.keypoints[0] = __int_as_float(num_people);
    }
}
