"""Arrays in, arrays out. Nothing here knows of stages, files or networks.

    preprocess   picture planes -> network input      (colour + affine resize + normalise)
    peaks        heatmap pyramid, tags -> peaks       (average + NMS + top-k in one pass)
    grouping     peaks -> people                      (matching by tag, adjust, refine)
    decode       heatmap pyramid, tags -> people      (both: what stream and evaluation call)

Every kernel has a CPU twin in numba; jit.py says how those are compiled.
"""
