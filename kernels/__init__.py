"""Arrays in, arrays out. Nothing here knows of stages, files or networks.

    geometry     where a picture lies in the network input
    preprocess   picture planes -> network input      (colour + affine resize + normalise; taps)
    averaging    heatmap pyramid -> mean maps         (bounds by tile)
    peaks        mean maps, tags -> peaks             (NMS + top-k in one pass)
    grouping     peaks -> people                      (matching by tag with munkres, adjust)
    refine       mean maps, people -> people          (missing keypoints filled)
    decode       heatmap pyramid, tags -> people      (all four: what stream and evaluation call)
    sampling     small maps read at any pixel of larger ones: what peaks and refine both look up
    checks/      are the GPU twins equal to the CPU twins?

Every kernel has a CPU twin in numba; jit.py says how those are compiled.
"""
