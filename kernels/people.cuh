// How people lie in the GPU's memory: grouping.cu makes the records, refine.cu completes them, and
// kernels/gpu_grouping.py gives them names.
//
// A person is one record of floats in people (1 + C, B, record), C = K * M people at most. Row 0
// holds the number of people (bits of an int) in its first word, so that the number and the first
// people of a batch lie together and go to the host in one copy.
//
//     keypoints (K, 3) | score | mean tag (T) | filled (K bytes)

struct Person {
    float* keypoints;
    float* score;
    float* tag;
    unsigned char* filled;
};

__device__ __forceinline__ int record_length(int num_keypoints, int num_numbers)
{
    return 3 * num_keypoints + 1 + num_numbers + (num_keypoints + 3) / 4;
}

__device__ __forceinline__ Person person_at(float* people, int row, int image, int num_images,
                                            int num_keypoints, int num_numbers)
{
    const int length = record_length(num_keypoints, num_numbers);
    Person person;
    person.keypoints = people + ((size_t)row * num_images + image) * length;
    person.score = person.keypoints + 3 * num_keypoints;
    person.tag = person.score + 1;
    person.filled = (unsigned char*)(person.tag + num_numbers);
    return person;
}
